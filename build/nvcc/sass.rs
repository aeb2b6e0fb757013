//! What the machine code of each kernel is made of: read from the text that `nvdisasm -c` prints. Strict like
//! [`resources`](super::resources): code that is not understood is an error.

use std::collections::{BTreeMap, HashMap};

use crate::nvcc::flow;
use crate::nvcc::resources::Usage;

/// Instructions of one kernel on one architecture; no-operations do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Code {
    pub instructions: u32,
    /// Matrix products of a warpgroup: HGMMA and its kin.
    pub wgmma: u32,
    /// How many loops lie around the innermost of them.
    pub wgmma_loops: u32,
    /// Matrix products of a warp: HMMA and its kin.
    pub mma: u32,
    pub mma_loops: u32,
    /// Loads and stores of local memory: LDL and STL.
    pub local: u32,
    /// Tensor map loads: UTMALDG.
    pub tma_loads: u32,
    /// Tensor map stores and reductions: UTMASTG and UTMAREDG.
    pub tma_stores: u32,
}

/// What a line holds that stays between builds; another list makes every file compile again.
pub const COLUMNS: &str = "kernel arch instructions wgmma wgmma_loops mma mma_loops local tma_loads tma_stores";

impl Code {
    fn figures(&mut self) -> [&mut u32; 8] {
        [
            &mut self.instructions,
            &mut self.wgmma,
            &mut self.wgmma_loops,
            &mut self.mma,
            &mut self.mma_loops,
            &mut self.local,
            &mut self.tma_loads,
            &mut self.tma_stores,
        ]
    }
}

/// The lines that stay, one a kernel, of a text that `nvdisasm -c` printed.
pub fn lines(text: &str) -> Result<String, String> {
    let words = text.split_once("\t.target\t").and_then(|(_, rest)| rest.split_whitespace().next());
    let arch = words.ok_or("nvdisasm tells no architecture")?;
    let mut lines = String::new();
    for (name, mut code) in parse(text)? {
        let figures = code.figures().map(|n| n.to_string()).join(" ");
        lines += &format!("{name} {arch} {figures}\n");
    }
    Ok(lines)
}

/// Joins the lines with the record of a file; an error if a kernel has none.
pub fn attach(lines: &str, usages: &mut [Usage]) -> Result<(), String> {
    for usage in usages {
        let mut words = lines.lines().map(str::split_whitespace);
        let mut found = words
            .find(|words| {
                let mut words = words.clone();
                words.next() == Some(&usage.name) && words.next() == Some(&usage.arch)
            })
            .ok_or_else(|| format!("nvdisasm shows no machine code of {} for {}", usage.name, usage.arch))?
            .skip(2);
        let mut code = Code::default();
        for figure in code.figures() {
            let word = found.next().and_then(|word| word.parse().ok());
            *figure = word.ok_or_else(|| format!("the kept figures of {} are not understood", usage.name))?;
        }
        usage.code = Some(code);
    }
    Ok(())
}

/// Kernels of one architecture and their code; functions with a section of their own appear under their own name.
pub fn parse(text: &str) -> Result<BTreeMap<String, Code>, String> {
    let mut found = BTreeMap::new();
    for section in text.split("\t.section\t").skip(1) {
        let Some((name, body)) = section.strip_prefix(".text.").and_then(|rest| rest.split_once(',')) else {
            continue;
        };
        let code = parse_section(body).map_err(|e| format!("machine code of {name}: {e}"))?;
        found.insert(name.to_string(), code);
    }
    Ok(found)
}

/// `/*0150*/ @!P0 BRA `(.L_x_1) ;` without its address.
struct Instruction<'a> {
    /// Without predicate.
    text: &'a str,
    predicated: bool,
}

impl Instruction<'_> {
    /// The name up to its first modifier: `HGMMA` of `HGMMA.64x8x16.F32.BF16`.
    fn name(&self) -> &str {
        self.text.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or("")
    }
}

fn parse_section(body: &str) -> Result<Code, String> {
    let mut instructions = Vec::new();
    let mut labels = HashMap::new();
    for line in body.lines() {
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label.trim(), instructions.len());
        } else if let Some((address, text)) = line.trim().strip_prefix("/*").and_then(|rest| rest.split_once("*/")) {
            u32::from_str_radix(address, 16).map_err(|_| format!("`{}` is not understood", line.trim()))?;
            let text = text.trim().trim_end_matches(';').trim_end();
            let (predicated, text) = match text.strip_prefix('@').and_then(|rest| rest.split_once(' ')) {
                Some((_, text)) => (true, text.trim_start()),
                None => (false, text),
            };
            instructions.push(Instruction { text, predicated });
        }
    }
    if instructions.is_empty() {
        return Err("there is none".into());
    }
    let loops = flow::loops_around(&successors(&instructions, &labels)?);
    let mut code = Code::default();
    for (instruction, &loops) in instructions.iter().zip(&loops) {
        let name = instruction.name();
        code.instructions += u32::from(name != "NOP");
        if name.ends_with("GMMA") {
            code.wgmma += 1;
            code.wgmma_loops = code.wgmma_loops.max(loops);
        } else if name.ends_with("MMA") {
            code.mma += 1;
            code.mma_loops = code.mma_loops.max(loops);
        }
        code.local += u32::from(matches!(name, "LDL" | "STL"));
        code.tma_loads += u32::from(name == "UTMALDG");
        code.tma_stores += u32::from(matches!(name, "UTMASTG" | "UTMAREDG"));
    }
    Ok(code)
}

/// The instructions that may follow each one. A call returns, and the point where a warp meets again (BSSY) is no jump.
fn successors(instructions: &[Instruction], labels: &HashMap<&str, usize>) -> Result<Vec<Vec<usize>>, String> {
    let of = |(at, instruction): (usize, &Instruction)| -> Result<Vec<usize>, String> {
        let name = instruction.name();
        let jump = matches!(name, "BRA" | "BRX" | "JMP" | "JMX");
        // Modifiers (`BRA.U.ANY`) and further predicates (`BRA P3, ...`) are conditions too.
        let on_condition = instruction.predicated || (jump && !instruction.text[name.len()..].starts_with(" `"));
        let leaves = matches!(name, "EXIT" | "RET" | "KILL" | "BRX" | "JMX") && !instruction.predicated;
        let always = leaves || (jump && !on_condition);
        let mut next = Vec::new();
        if jump {
            let targets = label_names(instruction.text);
            for target in &targets {
                next.push(*labels.get(target).ok_or_else(|| format!("no label {target}"))?);
            }
            if targets.is_empty() {
                return Err(format!("`{}` does not say where it jumps", instruction.text));
            }
        }
        if !always && at + 1 < instructions.len() {
            next.push(at + 1);
        }
        // A label may stand behind the last instruction.
        next.retain(|&to| to < instructions.len());
        Ok(next)
    };
    instructions.iter().enumerate().map(of).collect()
}

/// The labels that an instruction names: `.L_x_12`.
fn label_names(text: &str) -> Vec<&str> {
    let end = |rest: &str| rest.find(|c: char| !c.is_ascii_alphanumeric() && !"._".contains(c)).unwrap_or(rest.len());
    text.match_indices(".L_").map(|(at, _)| &text[at..][..end(&text[at..])]).collect()
}
