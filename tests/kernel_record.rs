//! The embedded kernels: what each takes of the hardware, as ptxas reported it.

use std::collections::BTreeMap;

use warpdiff::backend::gpu::kernels::{self, KernelRecord};

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
