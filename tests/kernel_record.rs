//! The embedded kernels: what each takes of the hardware, as ptxas reported it, and what its machine code is made of.

use std::collections::BTreeMap;

use warpdiff::backend::gpu::kernels::{self, KernelRecord, MachineCode};

/// Kernels that may use local memory, with the reason.
const LOCAL_MEMORY_ALLOWED: &[(&str, &str)] = &[];

#[test]
fn a_build_has_kernels_or_says_why_not() {
    assert_eq!(kernels::images().is_empty(), kernels::missing().is_some());
    assert_eq!(kernels::compiler().is_none(), kernels::missing().is_some());
    assert_eq!(kernels::record().is_empty(), kernels::images().is_empty());
}

#[test]
fn ci_builds_the_kernels() {
    let reason = kernels::missing().filter(|_| std::env::var_os("CI").is_some());
    assert_eq!(reason, None, "the checks of the kernels were skipped");
    if std::env::var_os("CI").is_some() {
        assert!(kernels::record().iter().all(|r| r.code.is_some()), "the checks of the machine code were skipped");
    }
}

#[test]
#[cfg_attr(not(cuda_kernels), ignore = "built without CUDA kernels; run scripts/setup-cuda")]
fn every_kernel_is_compiled_for_every_architecture() {
    let text = kernels::images().iter().all(|image| !image.targets.contains(&"sm_90a"));
    let mut archs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for r in kernels::record() {
        archs.entry(r.name).or_default().push(r.arch);
    }
    let names: usize = kernels::images().iter().map(|image| image.kernels.len()).sum();
    assert_eq!(archs.len(), names, "the images hold other kernels than the record");
    for (name, archs) in archs {
        let image = kernels::image_of(name).unwrap_or_else(|| panic!("no image holds {name}"));
        assert!(!image.bytes.is_empty() && image.bytes.as_ptr().addr().is_multiple_of(16), "{}", image.file);
        let expected = if text || image.file.ends_with("_sm90.cu") { vec!["sm_90a"] } else { vec!["sm_80", "sm_90a"] };
        assert_eq!(archs, expected, "{name}");
        if text {
            assert_eq!(image.targets, ["compute_90a"], "{}", image.file);
            let (last, ptx) = image.bytes.split_last().unwrap();
            assert_eq!(*last, 0, "{} does not end with NUL", image.file);
            assert!(std::str::from_utf8(ptx).unwrap().contains(&format!(".entry {name}(")), "{name}");
        } else if !image.file.ends_with("_sm90.cu") {
            assert_eq!(image.targets, ["sm_80", "sm_90a", "compute_90"], "{}", image.file);
        }
    }
    assert!(kernels::image_of("no such kernel").is_none());
}

#[test]
#[cfg_attr(not(cuda_kernels), ignore = "built without CUDA kernels; run scripts/setup-cuda")]
fn no_kernel_uses_local_memory() {
    let guilty: Vec<&KernelRecord> = kernels::record()
        .iter()
        .filter(|r| r.stack_bytes + r.spill_stores + r.spill_loads > 0)
        .filter(|r| !LOCAL_MEMORY_ALLOWED.iter().any(|(name, _)| *name == r.name))
        .collect();
    assert!(guilty.is_empty(), "{guilty:#?}");
    for (name, reason) in LOCAL_MEMORY_ALLOWED {
        let used =
            kernels::record().iter().any(|r| r.name == *name && r.stack_bytes + r.spill_stores + r.spill_loads > 0);
        assert!(used, "{name} needs no exception any more: {reason}");
    }
}

#[test]
#[cfg_attr(not(cuda_kernels), ignore = "built without CUDA kernels; run scripts/setup-cuda")]
fn every_kernel_fits_the_limits_of_a_launch() {
    for r in kernels::record() {
        assert!((1..=255).contains(&r.registers), "{r:?}");
        assert!(r.param_bytes <= 4096, "{r:?}");
        assert!(r.shared_bytes <= 48 << 10, "more static shared memory than a block may have: {r:?}");
    }
}

#[test]
#[cfg_attr(not(cuda_kernels), ignore = "built without CUDA kernels; run scripts/setup-cuda")]
fn the_build_says_how_long_each_file_took() {
    for image in kernels::images() {
        let (kernels, seconds) = (image.kernels.len(), image.nvcc_seconds);
        println!("{:<40} {kernels:>3} kernels {seconds:>7.2} s", image.file);
        assert!(kernels > 0 && seconds > 0.0, "{}: {kernels} kernels in {seconds} s", image.file);
    }
    let sum: f64 = kernels::images().iter().map(|image| image.nvcc_seconds).sum();
    println!("{sum:.1} s of nvcc");
    assert_eq!(kernels::nvcc_seconds(), sum);
    // Six minutes on two cores: more would make a change to a kernel a coffee break.
    assert!(sum < 720.0, "{sum} s of nvcc; see docs/kernels/README.md for what is compiled");
}

/// `docs/kernels/README.md` says why each kernel exists; a new one must be among them.
#[test]
#[cfg_attr(not(cuda_kernels), ignore = "built without CUDA kernels; run scripts/setup-cuda")]
fn the_journal_counts_the_kernels() {
    let text = include_str!("../docs/kernels/README.md");
    let (_, table) = text.split_once("| files | kernels |").unwrap();
    let cells = table.lines().filter_map(|line| line.split('|').nth(2)?.trim().parse::<usize>().ok());
    let all: usize = kernels::images().iter().map(|image| image.kernels.len()).sum();
    assert_eq!(cells.sum::<usize>(), all);
    assert!(text.contains(&format!("{all} kernels in {} files", kernels::images().len())), "{all}");
}

/// Kernels with machine code for Hopper.
fn on_hopper() -> impl Iterator<Item = (&'static KernelRecord, MachineCode)> {
    let code = |r: &'static KernelRecord| (r, r.code.unwrap_or_else(|| panic!("no machine code of {}", r.name)));
    kernels::record().iter().filter(|r| r.arch == "sm_90a").map(code)
}

#[test]
#[cfg_attr(not(cuda_machine_code), ignore = "built without nvdisasm; run scripts/setup-cuda")]
fn machine_code_touches_local_memory_only_where_it_may() {
    for (r, code) in kernels::record().iter().filter_map(|r| Some((r, r.code?))) {
        assert!(code.instructions > 0, "{r:?}");
        let allowed = LOCAL_MEMORY_ALLOWED.iter().any(|(name, _)| *name == r.name);
        assert!(code.local == 0 || allowed, "{r:?}");
    }
}

/// Convolutions, matrix products and attention in bf16 that use a warp's products: those sit in a loop.
#[test]
#[cfg_attr(not(cuda_machine_code), ignore = "built without nvdisasm; run scripts/setup-cuda")]
fn matrix_kernels_multiply_on_tensor_cores_in_their_loops() {
    let families = ["conv_fprop_", "conv_dgrad_", "conv_wgrad_", "attention_"];
    for family in families {
        // Those of Hopper use the products of a warpgroup.
        let by_warps = |r: &&KernelRecord| r.name.ends_with("_bf16") && !r.name.starts_with("attention_hopper_");
        let matrix = kernels::record().iter().filter(|r| r.name.starts_with(family)).filter(by_warps);
        let mut count = 0;
        for r in matrix {
            let code = r.code.unwrap_or_else(|| panic!("no machine code of {}", r.name));
            assert!(code.mma > 0 && code.mma_loops > 0, "{r:?}");
            count += 1;
        }
        assert!(count > 0, "no kernel is called {family}*_bf16");
    }
}

/// 65536 registers among three warpgroups, in steps of 8: what the compiler may give a thread on average before the
/// warpgroups exchange theirs.
const REGISTERS_OF_384_THREADS: u32 = 168;

#[test]
#[cfg_attr(not(cuda_machine_code), ignore = "built without nvdisasm; run scripts/setup-cuda")]
fn hopper_kernels_multiply_by_warpgroups_and_load_by_tensor_maps() {
    let families = [("conv/", "conv_hopper_"), ("attention/", "attention_hopper_")];
    for (folder, family) in families {
        let files = kernels::images().iter().filter(|i| i.file.starts_with(folder) && i.file.ends_with("_sm90.cu"));
        for image in files {
            let named = image.kernels.iter().any(|name| name.starts_with(family));
            assert!(named, "{} holds no kernel called {family}*: {:?}", image.file, image.kernels);
        }
        assert!(on_hopper().any(|(r, _)| r.name.starts_with(family)), "no kernel is called {family}*");
    }
    let of_hopper = |r: &KernelRecord| families.iter().any(|(_, family)| r.name.starts_with(family));
    for (r, code) in on_hopper().filter(|(r, _)| of_hopper(r)) {
        assert!(code.wgmma > 0 && code.wgmma_loops > 0, "no products of a warpgroup in a loop: {r:?}");
        assert!(code.tma_loads > 0, "no loads through tensor maps: {r:?}");
        assert_eq!(code.mma, 0, "products of a warp: {r:?}");
        assert!(r.registers <= REGISTERS_OF_384_THREADS, "{r:?}");
    }
}
