//! The part of the build that finds and runs nvcc, on recorded output and with a shell script in its place.

#[allow(dead_code)] // The entry of the build script is not called here.
#[path = "../build/nvcc/mod.rs"]
mod nvcc;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use nvcc::find::{Candidate, Compiler, Missing, Version, candidates, choose};
use nvcc::flow::loops_around;
use nvcc::resources::{Usage, merge, parse_ptx, parse_ptxas, serialised_products};
use nvcc::sass::{self, Code};

const LOG: &str = include_str!("data/nvcc/resources.ptxas.txt");
const PTX: &str = include_str!("data/nvcc/resources.ptx");
const SASS: &str = include_str!("data/nvcc/code.sass.txt");

const VERSION_TEXT: &str = "nvcc: NVIDIA (R) Cuda compiler driver
Copyright (c) 2005-2025 NVIDIA Corporation
Built on Wed_Aug_20_01:58:59_PM_PDT_2025
Cuda compilation tools, release 13.0, V13.0.88
Build cuda_13.0.r13.0/compiler.36424714_0
";

fn version(major: u32, minor: u32, build: u32) -> Version {
    Version { major, minor, build }
}

#[test]
fn the_version_is_read_from_what_nvcc_prints() {
    assert_eq!(Version::parse(VERSION_TEXT), Some(version(13, 0, 88)));
    assert_eq!(Version::parse("Cuda compilation tools, release 12.4, V12.4.131"), Some(version(12, 4, 131)));
    for text in ["", "Version 13", "release 13.0", "V13.0", "V13.x.88"] {
        assert_eq!(Version::parse(text), None, "{text:?}");
    }
    assert!(version(13, 0, 1) > version(12, 9, 86));
}

/// Origins of the candidates on a machine with these variables and files.
fn origins(variables: &[(&str, &str)], files: &[&str]) -> Result<Vec<(String, String)>, String> {
    let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
    let is_file = |path: &Path| files.iter().any(|file| Path::new(file) == path);
    let entries = |folder: &Path| {
        let below = files.iter().filter_map(|file| Path::new(file).strip_prefix(folder).ok());
        below.filter_map(|rest| Some(folder.join(rest.iter().next()?))).collect::<Vec<PathBuf>>()
    };
    let found = candidates(&variable, &is_file, &entries, Path::new("/crate"))?;
    Ok(found.into_iter().map(|c| (c.origin, c.path.display().to_string())).collect())
}

#[cfg(unix)]
#[test]
fn places_are_searched_in_the_documented_order() {
    let files = [
        "/home/cuda/bin/nvcc",
        "/path/cuda/bin/nvcc",
        "/usr/bin/nvcc",
        "/usr/local/cuda-9.2/bin/nvcc",
        "/usr/local/cuda-12.10/bin/nvcc",
        "/usr/local/cuda-12.9/bin/nvcc",
        "/usr/local/cuda-old/bin/nvcc",
        "/usr/local/cuda/bin/nvcc",
        "/opt/cuda/bin/nvcc",
        "/crate/.cuda/nvidia/cu13/bin/nvcc",
    ];
    let variables = [("CUDA_HOME", "/home/cuda"), ("CUDA_PATH", "/path/cuda"), ("PATH", "/bin:/usr/bin")];
    let found = origins(&variables, &files).unwrap();
    let expected = [
        ("CUDA_HOME", files[0]),
        ("CUDA_PATH", files[1]),
        ("PATH", files[2]),
        ("/usr/local/cuda", files[7]),
        ("/usr/local/cuda-12.10", files[4]),
        ("/usr/local/cuda-12.9", files[5]),
        ("/usr/local/cuda-9.2", files[3]),
        ("/opt/cuda", files[8]),
        (".cuda", files[9]),
    ];
    assert_eq!(found, expected.map(|(origin, path)| (origin.to_string(), path.to_string())));
    assert_eq!(origins(&[("CUDA_HOME", "/runtime/only")], &[]).unwrap(), []);
}

#[cfg(unix)]
#[test]
fn nvcc_named_by_the_user_is_taken_alone_or_refused() {
    let files = ["/usr/bin/nvcc", "/usr/bin/nvcc-13", "/my/nvcc"];
    let named = |value: &'static str| origins(&[("NVCC", value), ("PATH", "/usr/bin"), ("CUDA_HOME", "/my")], &files);
    assert_eq!(named("/my/nvcc").unwrap(), [("NVCC".to_string(), "/my/nvcc".to_string())]);
    assert_eq!(named("nvcc-13").unwrap(), [("NVCC".to_string(), "/usr/bin/nvcc-13".to_string())]);
    for absent in ["/not/there", "nvcc-14"] {
        assert!(named(absent).unwrap_err().contains(&format!("NVCC={absent}")));
    }
}

#[test]
fn the_first_compiler_that_is_new_enough_is_taken() {
    let places: Vec<Candidate> = ["11.8.89", "12.3.107", "broken", "12.4.99", "13.0.88"]
        .map(|name| Candidate { path: name.into(), origin: format!("origin of {name}") })
        .into();
    let asked = Cell::new(0);
    let text = |path: &Path| {
        asked.set(asked.get() + 1);
        let name = path.to_str().unwrap();
        (name != "broken").then(|| format!("V{name}"))
    };
    let chosen = choose(places.clone(), text).unwrap();
    assert_eq!(chosen.version, version(12, 4, 99));
    assert_eq!(chosen.to_string(), "nvcc 12.4.99 from origin of 12.4.99");
    assert_eq!(asked.get(), 4, "compilers behind the chosen one are not run");

    let Err(Missing::TooOld(best)) = choose(places[..3].to_vec(), text) else { panic!("12.3 was taken") };
    assert_eq!(best.version, version(12, 3, 107));
    assert_eq!(choose(places[2..3].to_vec(), text), Err(Missing::Broken(places[2].clone())));
    assert_eq!(choose(vec![], text), Err(Missing::NotFound));
    for missing in [Missing::NotFound, Missing::TooOld(best), Missing::Broken(places[2].clone())] {
        let message = missing.to_string();
        assert!(message.contains("scripts/setup-cuda") && !message.contains('\n'), "{message}");
    }
}

fn usage(name: &str, arch: &str, figures: [u32; 6]) -> Usage {
    let [registers, shared_bytes, stack_bytes, spill_stores, spill_loads, param_bytes] = figures;
    let (name, arch) = (name.to_string(), arch.to_string());
    Usage { name, arch, registers, shared_bytes, stack_bytes, spill_stores, spill_loads, param_bytes, code: None }
}

#[test]
fn the_record_of_real_output_is_complete() {
    let record = merge(LOG, &parse_ptx(PTX).unwrap(), &["sm_80", "sm_90a"]).unwrap();
    let expected = [
        usage("callee_spills", "sm_80", [24, 0, 24, 24, 24, 24]),
        usage("callee_spills", "sm_90a", [24, 0, 24, 24, 24, 24]),
        usage("nothing", "sm_80", [4, 0, 0, 0, 0, 0]),
        usage("nothing", "sm_90a", [4, 0, 0, 0, 0, 0]),
        usage("parameters", "sm_80", [10, 0, 0, 0, 0, 40]),
        usage("parameters", "sm_90a", [10, 0, 0, 0, 0, 40]),
        usage("shared_memory", "sm_80", [12, 384, 0, 0, 0, 24]),
        usage("shared_memory", "sm_90a", [14, 384, 0, 0, 0, 24]),
        usage("spills", "sm_80", [32, 0, 312, 432, 436, 24]),
        usage("spills", "sm_90a", [32, 0, 560, 660, 664, 24]),
        usage("stack", "sm_80", [34, 0, 256, 0, 0, 24]),
        usage("stack", "sm_90a", [30, 0, 256, 0, 0, 24]),
    ];
    assert_eq!(record, expected);
}

#[test]
fn output_that_is_not_understood_is_an_error() {
    let parameters = parse_ptx(PTX).unwrap();
    let archs = ["sm_80", "sm_90a"];
    let bad = |log: &str, words: &str| {
        let error = merge(log, &parameters, &archs).unwrap_err();
        assert!(error.contains(words), "{error}");
    };
    bad(&LOG.replace("'stack' for 'sm_90a'", "'other' for 'sm_90a'"), "no kernel other");
    bad(&LOG.replace("for 'sm_90a'", "for 'sm_80'"), "twice");
    bad(&LOG.replace("for 'sm_90a'", "for 'sm_75'"), "nobody asked");
    bad(&LOG.replace(" registers", " regs"), "not understood");
    bad(&LOG.replace("bytes spill loads", "bytes reloaded"), "not understood");
    bad(&LOG.replace("bytes stack frame", "bytes frame"), "no stack");
    bad(&LOG.replace("ptxas info    : Used", "ptxas info    : Takes"), "no registers");
    bad("", "no record");
    let half = LOG.find("'callee_spills' for 'sm_90a'").unwrap();
    bad(&LOG[..half - "ptxas info    : Compiling entry function ".len()], "for sm_90a");
    assert!(merge("", &BTreeMap::new(), &archs).unwrap_err().contains("no kernel"));
    assert_eq!(parse_ptxas("").unwrap(), []);
}

/// Two of the lines are ptxas's own, of kernels that add to an accumulator between products, once unrolled and once not.
#[test]
fn products_that_wait_for_one_another_are_an_error() {
    let line = "ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
                insufficient register resources for the wgmma pipeline in the function 'unrolled'";
    let injected = "ptxas info    : (C7517) warpgroup.wait is injected in around line 217 by compiler to allow use of \
                    registers defined by GMMA in function 'touched'";
    let harmless = "ptxas info    : (C7519) warpgroup.arrive is injected in around line 2512 by compiler to allow use of \
                    registers in GMMA in function 'other'";
    let error = serialised_products(&format!("{LOG}{line}\n{injected}\n{line}\n{harmless}\n")).unwrap();
    for words in ["'unrolled'", "insufficient register resources", "'touched'", "wgmma_fence", "__launch_bounds__"] {
        assert!(error.contains(words), "{error}");
    }
    assert!(!error.contains("'other'") && !error.contains("callee_spills"), "{error}");
    assert_eq!(serialised_products(&format!("{LOG}{harmless}\n")), None);
}

#[test]
fn the_instructions_of_real_machine_code_are_counted() {
    let found = sass::parse(SASS).unwrap();
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["boxes", "local_array", "nested", "once_after_a_wait", "warp_product"]);
    // Every line with an address, less the padding.
    let lines = SASS.lines().filter(|line| line.trim().starts_with("/*") && !line.contains("NOP")).count();
    assert_eq!(found.values().map(|code| code.instructions as usize).sum::<usize>(), lines);
    let figures = |name: &str| {
        let Code { wgmma, wgmma_loops, mma, mma_loops, local, tma_loads, tma_stores, .. } = found[name];
        [wgmma, wgmma_loops, mma, mma_loops, local, tma_loads, tma_stores]
    };
    assert_eq!(figures("once_after_a_wait"), [1, 0, 0, 0, 0, 0, 0], "a jump back over the product is no loop");
    assert_eq!(figures("nested"), [1, 2, 0, 0, 0, 0, 0]);
    assert_eq!(figures("warp_product"), [0, 0, 1, 1, 0, 0, 0]);
    assert_eq!(figures("boxes"), [0, 0, 0, 0, 0, 2, 1]);
    let local = SASS.lines().filter(|line| line.contains(" STL") || line.contains(" LDL")).count();
    assert!(local >= 2, "the recorded kernel keeps its array in local memory");
    assert_eq!(figures("local_array"), [0, 0, 0, 0, local as u32, 0, 0]);

    let bad = |text: &str, words: &str| {
        let error = sass::parse(text).unwrap_err();
        assert!(error.contains(words), "{error}");
    };
    bad(&SASS.replace("/*0010*/", "/*00x0*/"), "not understood");
    bad(&SASS.replace("BRA `(.L_x_", "BRA `(.L_y_"), "no label .L_y_");
    bad(&SASS.replace("BRA `(.L_x_", "BRX R2 `(x"), "where it jumps");
    bad("\t.section\t.text.empty,\"ax\"\nempty:\n", "machine code of empty");
}

#[test]
fn the_record_takes_the_machine_code_of_its_kernels() {
    let mut usages = vec![usage("nested", "sm_90a", [1; 6]), usage("boxes", "sm_90a", [1; 6])];
    let lines = sass::lines(SASS).unwrap();
    sass::attach(&lines, &mut usages).unwrap();
    let found = sass::parse(SASS).unwrap();
    assert_eq!(usages.iter().map(|u| u.code).collect::<Vec<_>>(), [Some(found["nested"]), Some(found["boxes"])]);
    for (name, arch) in [("nested", "sm_80"), ("absent", "sm_90a")] {
        let error = sass::attach(&lines, &mut [usage(name, arch, [1; 6])]).unwrap_err();
        assert!(error.contains(name) && error.contains(arch), "{error}");
    }
    let cut = "nested sm_90a 57 1 2";
    assert!(sass::attach(cut, &mut usages[..1]).unwrap_err().contains("not understood"));
    assert!(sass::lines("no text of nvdisasm").is_err());
}

/// Graphs as lists of edges: loops in a row, in one another, with a shared end, of one node, and code that is not reached.
#[test]
fn loops_are_counted_in_any_order_of_the_code() {
    let loops = |nodes: usize, edges: &[(usize, usize)]| {
        let mut successors = vec![vec![]; nodes];
        edges.iter().for_each(|&(from, to)| successors[from].push(to));
        loops_around(&successors)
    };
    assert_eq!(loops(3, &[(0, 1), (1, 2)]), [0, 0, 0]);
    assert_eq!(loops(3, &[(0, 1), (1, 1), (1, 2)]), [0, 1, 0]);
    assert_eq!(loops(5, &[(0, 1), (1, 2), (2, 1), (2, 3), (3, 4), (4, 3)]), [0, 1, 1, 1, 1]);
    assert_eq!(loops(5, &[(0, 1), (1, 2), (2, 3), (3, 2), (3, 1), (3, 4)]), [0, 1, 2, 2, 0]);
    assert_eq!(loops(4, &[(0, 3), (3, 1), (1, 2), (2, 1), (2, 3)]), [0, 2, 2, 1], "the header stands behind its loop");
    assert_eq!(loops(4, &[(0, 2), (2, 1), (1, 3), (3, 3)]), [0, 0, 0, 1]);
    assert_eq!(loops(3, &[(0, 2), (1, 2)]), [0, 0, 0]);
    assert_eq!(loops(0, &[]), [0; 0]);
}

#[cfg(unix)]
#[test]
fn the_disassembler_beside_nvcc_comes_first() {
    let find = |files: &'static [&str]| {
        let variable = |name: &str| (name == "PATH").then(|| OsString::from("/bin:/usr/bin"));
        let is_file = |path: &Path| files.iter().any(|file| Path::new(file) == path);
        nvcc::find::beside_or_on_path(Path::new("/cuda/bin/nvcc"), "nvdisasm", &variable, &is_file)
    };
    assert_eq!(find(&["/usr/bin/nvdisasm", "/cuda/bin/nvdisasm"]), Some("/cuda/bin/nvdisasm".into()));
    assert_eq!(find(&["/usr/bin/nvdisasm"]), Some("/usr/bin/nvdisasm".into()));
    assert_eq!(find(&["/elsewhere/nvdisasm"]), None);
}

#[test]
fn parameters_are_laid_out_as_a_c_struct() {
    let bytes = |list: &str| parse_ptx(&format!(".visible .entry k({list})\n{{ ret; }}")).map(|kernels| kernels["k"]);
    assert_eq!(bytes(""), Ok(0));
    assert_eq!(bytes("\n\t.param .u8 a,\n\t.param .f64 b,\n\t.param .u16 c\n"), Ok(18));
    assert_eq!(bytes(".param .u64 .ptr .align 1 a"), Ok(8));
    assert_eq!(bytes(".param .u32 a, .param .align 64 .b8 map[128]"), Ok(192));
    assert!(bytes(".param .texref a").unwrap_err().contains("not understood"));
    assert!(bytes(".reg .u32 a").is_err());
}

#[test]
fn includes_are_found_in_every_spelling() {
    let text =
        "#include \"device/device.cuh\"\n  #  include <a.cuh> // why\n#if 0\n#include\"b.cuh\"\n#endif\nint include;";
    assert_eq!(nvcc::sources::includes(text).collect::<Vec<_>>(), ["device/device.cuh", "a.cuh", "b.cuh"]);
}

/// A tree of kernels with a script for nvcc that knows two things: a line `kernel NAME` of a source is a kernel, and
/// `error` fails. Each run adds a line to `calls`.
#[cfg(unix)]
mod incremental {
    use super::*;
    use nvcc::compile::{Form, Image, Plan, all};
    use std::os::unix::fs::PermissionsExt;

    const SCRIPT: &str = r#"#!/bin/sh
for last; do :; done
archs=
while [ $# -gt 0 ]; do
    case $1 in
        -o) out=$2 ;;
        --keep-dir) keep=$2 ;;
        -gencode=*,code=sm_*) archs="$archs ${1##*code=}" ;;
    esac
    shift
done
echo "$last" >>calls
if grep -q '^error' "$last"; then echo "$last(1): error: this is what nvcc says" >&2; exit 2; fi
echo "image of $last" >"$out"
: >"$keep/x.ptx"
if grep -q '^serial' "$last"; then echo "ptxas info : wgmma.mma_async instructions are serialized in 'x'" >&2; fi
for arch in $archs; do
    printf '\t.target\t%s\n' "$arch" >"$keep/$arch.cubin"
done
for kernel in $(sed -n 's/^kernel //p' "$last"); do
    echo ".visible .entry $kernel(.param .u64 p)" >>"$keep/x.ptx"
    for arch in $archs; do
        grep -q '^unrecorded' "$last" && continue
        printf '\t.section\t.text.%s,"ax"\n /*0000*/ STL [R1], R2 ;\n /*0010*/ EXIT ;\n' "$kernel" >>"$keep/$arch.cubin"
        echo "ptxas info    : Compiling entry function '$kernel' for '$arch'"
        echo "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
        echo "ptxas info    : Used 7 registers, used 0 barriers"
    done
done >&2
"#;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Tree {
            let tree = Tree(tempfile::tempdir().unwrap());
            tree.write("nvcc", SCRIPT);
            fs::set_permissions(tree.path("nvcc"), fs::Permissions::from_mode(0o755)).unwrap();
            tree.write("kernels/device/types.cuh", "");
            tree.write("kernels/device/device.cuh", "#include \"types.cuh\"\n");
            tree.write("kernels/a/one.cu", "#include \"device/device.cuh\"\nkernel one\n");
            tree.write("kernels/a/two.cu", "kernel two_b\nkernel two_a\n");
            tree.write("kernels/b/three_sm90.cu", "#include \"own.cuh\"\nkernel three\n");
            tree.write("kernels/b/own.cuh", "");
            tree.write("kernels/sim/tests/race.cu", "error: the simulator's, not ours");
            tree
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            fs::write(self.path(name), text).unwrap();
        }

        fn plan(&self) -> Plan {
            let compiler = Compiler { path: self.path("nvcc"), origin: "test".into(), version: version(13, 0, 88) };
            let (root, cache) = (self.path(""), self.path("out"));
            let disassembler = None;
            Plan { compiler, disassembler, form: Form::Fatbin, root, cache, environment: vec![], workers: 2 }
        }

        /// Prints what the script for nvcc wrote as machine code.
        fn disassembler(&self) -> PathBuf {
            self.write("nvdisasm", "#!/bin/sh\nshift\ncat \"$1\"\n");
            fs::set_permissions(self.path("nvdisasm"), fs::Permissions::from_mode(0o755)).unwrap();
            self.path("nvdisasm")
        }

        fn compile(&self, plan: &Plan) -> Result<Vec<Image>, String> {
            all(plan, &nvcc::sources::find(&self.path("kernels")).unwrap())
        }

        /// Files that the next build compiles.
        fn compiled(&self, plan: &Plan) -> Vec<String> {
            fs::remove_file(self.path("calls")).ok();
            self.compile(plan).unwrap();
            let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
            let mut calls: Vec<String> = calls.lines().map(|line| line.replace("kernels/", "")).collect();
            calls.sort();
            calls
        }
    }

    #[test]
    fn only_what_changed_is_compiled_and_the_record_stays() {
        let (tree, every) = (Tree::new(), ["a/one.cu", "a/two.cu", "b/three_sm90.cu"]);
        let mut plan = tree.plan();
        assert_eq!(tree.compiled(&plan), every);
        assert!(tree.compiled(&plan).is_empty());

        let images = tree.compile(&plan).unwrap();
        let record: Vec<String> =
            images.iter().flat_map(|i| &i.usages).map(|u| format!("{} {}", u.name, u.arch)).collect();
        let expected =
            ["one sm_80", "one sm_90a", "two_a sm_80", "two_a sm_90a", "two_b sm_80", "two_b sm_90a", "three sm_90a"];
        assert_eq!(record, expected);
        assert!(images.iter().flat_map(|i| &i.usages).all(|u| (u.registers, u.param_bytes) == (7, 8)));
        assert_eq!(images[0].targets, ["sm_80", "sm_90a", "compute_90"]);
        assert_eq!((images[2].file.as_str(), &images[2].targets[..]), ("b/three_sm90.cu", &["sm_90a"][..]));

        tree.write("kernels/device/types.cuh", "// changed");
        assert_eq!(tree.compiled(&plan), ["a/one.cu"], "a header that a header includes");
        tree.write("kernels/b/own.cuh", "// changed");
        assert_eq!(tree.compiled(&plan), ["b/three_sm90.cu"], "a header of the same folder");
        tree.write("kernels/a/four.cu", "kernel four\n");
        assert_eq!(tree.compiled(&plan), ["a/four.cu"]);
        fs::remove_file(tree.path("kernels/a/four.cu")).unwrap();
        assert!(tree.compiled(&plan).is_empty());
        assert_eq!(tree.compile(&plan).unwrap().len(), 3);

        assert!(images.iter().all(|image| image.seconds > 0.0));
        assert!(images.iter().flat_map(|i| &i.usages).all(|u| u.code.is_none()), "nothing showed the machine code");
        plan.disassembler = Some(tree.disassembler());
        assert_eq!(tree.compiled(&plan), every, "a disassembler is there now");
        assert!(tree.compiled(&plan).is_empty());
        let expected = Code { instructions: 2, local: 1, ..Code::default() };
        let images = tree.compile(&plan).unwrap();
        assert!(images.iter().flat_map(|i| &i.usages).all(|u| u.code == Some(expected)));

        plan.compiler.version.build += 1;
        assert_eq!(tree.compiled(&plan), every, "another compiler");
        plan.environment.push("NVCC_APPEND_FLAGS=-lineinfo".into());
        assert_eq!(tree.compiled(&plan), every, "other flags");
        plan.form = Form::Ptx;
        assert_eq!(tree.compiled(&plan), every);
        plan.form = Form::Fatbin;
        assert!(tree.compiled(&plan).is_empty(), "both forms stay");
    }

    #[test]
    fn ptx_is_embedded_as_text_for_one_architecture() {
        let tree = Tree::new();
        let images = tree.compile(&Plan { form: Form::Ptx, ..tree.plan() }).unwrap();
        for image in images {
            assert_eq!(image.targets, ["compute_90a"]);
            assert!(image.usages.iter().all(|u| u.arch == "sm_90a" && u.param_bytes == 8));
            let text = fs::read_to_string(&image.path).unwrap();
            assert!(text.starts_with(".visible .entry ") && text.ends_with('\0'), "{text:?}");
        }
    }

    #[test]
    fn an_error_of_nvcc_ends_the_build_until_it_is_mended() {
        let tree = Tree::new();
        let fails = |name: &str, text: &str, words: &[&str]| {
            tree.write(name, text);
            for attempt in 0..2 {
                let error =
                    tree.compile(&tree.plan()).err().unwrap_or_else(|| panic!("attempt {attempt} went through"));
                assert!(words.iter().all(|word| error.contains(word)), "{error}");
            }
            fs::remove_file(tree.path(name)).unwrap();
        };
        tree.write("kernels/b/bad.cu", "error\n");
        fails("kernels/a/bad.cu", "error\n", &["a/bad.cu(1): error: this is what nvcc says", "b/bad.cu(1): error"]);
        fs::remove_file(tree.path("kernels/b/bad.cu")).unwrap();
        fails("kernels/a/silent.cu", "kernel silent\nunrecorded\n", &["silent.cu", "no record of silent for sm_80"]);
        fails("kernels/a/serial.cu", "kernel x\nserial\n", &["serial.cu", "wait for one another", "'x'"]);
        fails("kernels/a/empty.cu", "\n", &["empty.cu", "no kernel"]);
        fails("kernels/b/again.cu", "kernel one\n", &["kernel one", "kernels/a/one.cu", "kernels/b/again.cu"]);
        assert_eq!(tree.compile(&tree.plan()).unwrap().len(), 3);
    }
}

#[test]
fn the_generated_file_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernels.rs");
    nvcc::emit::missing(&path, &Missing::NotFound.to_string()).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("COMPILER: Option<&str> = None") && text.contains("MISSING: Option<&str> = Some("), "{text}");
    let compiler = Compiler { path: "nvcc".into(), origin: "PATH".into(), version: version(13, 0, 88) };
    nvcc::emit::images(&path, &compiler.to_string(), &[]).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.contains("Some(\"nvcc 13.0.88 from PATH\")") && text.contains("MISSING: Option<&str> = None"),
        "{text}"
    );
}
