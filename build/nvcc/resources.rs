//! What each kernel takes of the hardware: read from `ptxas -v` and from PTX. Strict: what is not understood is an error,
//! because a figure that is missing would pass every check.

use std::collections::BTreeMap;

use crate::nvcc::sass::Code;

/// One kernel on one architecture. Bytes are per thread, shared memory per block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub name: String,
    pub arch: String,
    pub registers: u32,
    /// Static shared memory, padded to where dynamic shared memory begins.
    pub shared_bytes: u32,
    pub stack_bytes: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
    /// From the PTX; 0 in the output of [`parse_ptxas`].
    pub param_bytes: u32,
    /// From the disassembler, where there is one.
    pub code: Option<Code>,
}

/// What ptxas says where the products of a warpgroup wait for one another, which makes them several times slower. To
/// ptxas that is information, not a warning, so that -Werror lets it pass. Compute capability 9.0 only.
const SERIALISED: [&str; 2] = ["wgmma.mma_async instructions are serialized", "warpgroup.wait is injected"];

/// The error for a log that tells of products that wait for one another: which kernels, why, and what to do.
pub fn serialised_products(log: &str) -> Option<String> {
    let mut lines: Vec<&str> = log.lines().filter(|line| SERIALISED.iter().any(|said| line.contains(said))).collect();
    lines.dedup();
    if lines.is_empty() {
        return None;
    }
    Some(format!(
        "ptxas makes the wgmma products of a kernel wait for one another\n{}\nbetween wgmma_fence and wgmma_wait, leave the \
         accumulators alone, call nothing that is not inlined, and keep within the registers of __launch_bounds__",
        lines.join("\n")
    ))
}

/// Reads the output of `ptxas -v`. Functions that were not inlined count for the kernel that they were compiled with:
/// the one that ptxas names before them.
pub fn parse_ptxas(log: &str) -> Result<Vec<Usage>, String> {
    let mut found: Vec<Usage> = Vec::new();
    let mut stack_known = false;
    for line in log.lines() {
        let line = line.trim();
        let message =
            line.strip_prefix("ptxas info").and_then(|rest| rest.trim_start().strip_prefix(':')).map(str::trim);
        let bad = || format!("`{line}` of ptxas -v is not understood");
        if let Some(entry) = message.and_then(|m| m.strip_prefix("Compiling entry function ")) {
            let mut quoted = entry.split('\'').skip(1).step_by(2);
            let (name, arch) = quoted.next().zip(quoted.next()).ok_or_else(bad)?;
            if found.iter().any(|usage| usage.name == name && usage.arch == arch) {
                return Err(format!("ptxas names kernel {name} twice for {arch}"));
            }
            found.push(Usage { name: name.into(), arch: arch.into(), ..Usage::default() });
            stack_known = false;
        } else if line.contains("bytes stack frame") {
            let usage = found.last_mut().ok_or_else(bad)?;
            let [stack, stores, loads] =
                ["bytes stack frame", "bytes spill stores", "bytes spill loads"].map(|what| amount(line, what));
            usage.stack_bytes = usage.stack_bytes.max(stack.ok_or_else(bad)?);
            usage.spill_stores += stores.ok_or_else(bad)?;
            usage.spill_loads += loads.ok_or_else(bad)?;
            stack_known = true;
        } else if let Some(used) = message.and_then(|m| m.strip_prefix("Used ")) {
            let usage = found.last_mut().ok_or_else(bad)?;
            if !stack_known {
                return Err(format!("ptxas -v tells no stack of {} for {}", usage.name, usage.arch));
            }
            usage.registers = amount(used, "registers").ok_or_else(bad)?;
            usage.shared_bytes = amount(used, "bytes smem").unwrap_or(0);
            usage.stack_bytes = usage.stack_bytes.max(amount(used, "bytes cumulative stack size").unwrap_or(0));
        }
    }
    match found.iter().find(|usage| usage.registers == 0) {
        Some(usage) => Err(format!("ptxas -v tells no registers of {} for {}", usage.name, usage.arch)),
        None => Ok(found),
    }
}

/// The number in the part `N what` of a list with commas.
fn amount(list: &str, what: &str) -> Option<u32> {
    list.split(',').find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
}

/// Kernels of a PTX text with the bytes of their parameters, laid out as the driver expects them.
pub fn parse_ptx(ptx: &str) -> Result<BTreeMap<String, u32>, String> {
    let mut kernels = BTreeMap::new();
    let mut rest = ptx;
    while let Some(at) = rest.find(".entry ") {
        let entry = &rest[at + ".entry ".len()..];
        let (head, tail) = entry.split_once(')').ok_or("an .entry of the PTX does not end")?;
        let (name, parameters) = head.split_once('(').ok_or("an .entry of the PTX has no parameter list")?;
        let mut bytes: u32 = 0;
        for parameter in parameters.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (size, align) = parameter_layout(parameter)
                .ok_or_else(|| format!("parameter `{parameter}` of {name} in the PTX is not understood"))?;
            bytes = bytes.next_multiple_of(align) + size;
        }
        kernels.insert(name.trim().to_string(), bytes);
        rest = tail;
    }
    Ok(kernels)
}

/// Size and alignment of `.param .align 8 .b8 name[24]` or `.param .u64 name`.
fn parameter_layout(parameter: &str) -> Option<(u32, u32)> {
    let mut words = parameter.split_whitespace().peekable();
    if words.next()? != ".param" {
        return None;
    }
    let mut align = None;
    if words.peek() == Some(&".align") {
        words.next();
        align = Some(words.next()?.parse().ok()?);
    }
    let bits: u32 = words.next()?.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
    let element = bits / 8;
    let count: u32 = match words.last()?.split_once('[') {
        Some((_, count)) => count.strip_suffix(']')?.parse().ok()?,
        None => 1,
    };
    let align = align.unwrap_or(element);
    (align > 0).then_some((element * count, align))
}

/// The record of one image: every kernel of the PTX on every architecture, with its parameter bytes. An error if ptxas and
/// PTX do not name the same kernels, or if there is none.
pub fn merge(log: &str, parameters: &BTreeMap<String, u32>, archs: &[&str]) -> Result<Vec<Usage>, String> {
    if parameters.is_empty() {
        return Err("the file holds no kernel".into());
    }
    let mut usages = parse_ptxas(log)?;
    for usage in &mut usages {
        usage.param_bytes =
            *parameters.get(&usage.name).ok_or_else(|| format!("the PTX has no kernel {}", usage.name))?;
        if !archs.contains(&usage.arch.as_str()) {
            return Err(format!("{} was compiled for {}, which nobody asked for", usage.name, usage.arch));
        }
    }
    for name in parameters.keys() {
        for arch in archs {
            if !usages.iter().any(|usage| usage.name == *name && usage.arch == *arch) {
                return Err(format!("ptxas -v has no record of {name} for {arch}"));
            }
        }
    }
    usages.sort_by(|a, b| (&a.name, &a.arch).cmp(&(&b.name, &b.arch)));
    Ok(usages)
}
