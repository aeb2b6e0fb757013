//! Runs nvcc on the files that changed, in parallel. What it made stays in `$OUT_DIR/{fatbin,ptx}/FILE/`: the image, the
//! PTX, the output of `ptxas -v`, what the machine code is made of, the time it took, and a key over all that went in.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crate::nvcc::find::Compiler;
use crate::nvcc::resources::{self, Usage};
use crate::nvcc::sass;
use crate::nvcc::sources;

/// Flags of every compilation; the include path and the architectures come on top.
const FLAGS: [&str; 6] = ["-std=c++20", "-Werror", "all-warnings", "-Xptxas", "-v", "-fatbin"];

/// What is embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Machine code for each architecture, and PTX for those that come.
    Fatbin,
    /// PTX text for sm_90a.
    Ptx,
}

impl Form {
    /// Reads `WARPDIFF_KERNELS`.
    pub fn from_variable(value: Option<&OsStr>) -> Result<Form, String> {
        match value {
            None => Ok(Form::Fatbin),
            Some(value) if value == "fatbin" => Ok(Form::Fatbin),
            Some(value) if value == "ptx" => Ok(Form::Ptx),
            Some(value) => Err(format!("WARPDIFF_KERNELS={} is neither fatbin nor ptx", value.display())),
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Form::Fatbin => "fatbin",
            Form::Ptx => "ptx",
        }
    }
}

/// How to compile.
pub struct Plan {
    pub compiler: Compiler,
    /// `nvdisasm`; without it the record says nothing of the machine code.
    pub disassembler: Option<PathBuf>,
    pub form: Form,
    /// The crate; its `kernels/` is the include path.
    pub root: PathBuf,
    /// Where images stay between builds.
    pub cache: PathBuf,
    /// Variables that nvcc reads, with their values.
    pub environment: Vec<String>,
    /// How many nvcc run at once.
    pub workers: usize,
}

/// One compiled file.
pub struct Image {
    /// Below `kernels/`, with slashes.
    pub file: String,
    pub path: PathBuf,
    /// What it holds: `sm_80`, or `compute_90` for PTX.
    pub targets: Vec<&'static str>,
    pub usages: Vec<Usage>,
    /// That nvcc ran, with as many others at the same time as cargo has jobs.
    pub seconds: f64,
}

/// Compiles every source that changed. The error holds what nvcc said about each file that failed.
pub fn all(plan: &Plan, sources: &[PathBuf]) -> Result<Vec<Image>, String> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..plan.workers.clamp(1, sources.len().max(1)) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = one(plan, source).map_err(|e| format!("{}: {e}", source.display()));
                    results.lock().unwrap_or_else(|e| e.into_inner()).insert(source, result);
                }
            });
        }
    });
    let (images, errors): (Vec<_>, Vec<_>) =
        results.into_inner().unwrap_or_else(|e| e.into_inner()).into_values().partition(Result::is_ok);
    let errors: Vec<String> = errors.into_iter().filter_map(Result::err).collect();
    if !errors.is_empty() {
        return Err(errors.join("\n\n"));
    }
    let images: Vec<Image> = images.into_iter().filter_map(Result::ok).collect();
    check_names(&images)?;
    Ok(images)
}

/// Kernels are found by name alone.
fn check_names(images: &[Image]) -> Result<(), String> {
    let mut owners = BTreeMap::new();
    for image in images {
        for usage in &image.usages {
            let owner = owners.insert(&usage.name, &image.file);
            if let Some(owner) = owner.filter(|owner| *owner != &image.file) {
                return Err(format!("kernel {} is in both kernels/{owner} and kernels/{}", usage.name, image.file));
            }
        }
    }
    Ok(())
}

fn one(plan: &Plan, source: &Path) -> Result<Image, String> {
    let kernels = plan.root.join("kernels");
    let relative = source.strip_prefix(&kernels).map_err(|e| e.to_string())?;
    let hopper_only = plan.form == Form::Ptx || relative.to_string_lossy().ends_with("_sm90.cu");
    let (archs, ptx): (&[&'static str], Option<&'static str>) =
        if hopper_only { (&["sm_90a"], None) } else { (&["sm_80", "sm_90a"], Some("compute_90")) };

    let mut flags: Vec<String> = FLAGS.map(String::from).into();
    flags.extend(archs.iter().map(|arch| format!("-gencode=arch={},code={arch}", arch.replace("sm_", "compute_"))));
    flags.extend(ptx.map(|ptx| format!("-gencode=arch={ptx},code={ptx}")));

    let made = Made::at(&plan.cache.join(plan.form.folder()).join(relative));
    let key = key(plan, &flags, source, &kernels).map_err(|e| format!("cannot be read: {e}"))?;
    if !fs::read_to_string(&made.key).is_ok_and(|old| old == key) {
        made.renew(plan, &flags, relative)?;
        write(&made.key, &key)?;
    }
    let parameters = resources::parse_ptx(&read(&made.ptx)?)?;
    let mut usages = resources::merge(&read(&made.log)?, &parameters, archs)?;
    if plan.disassembler.is_some() {
        sass::attach(&read(&made.code)?, &mut usages)?;
    }
    let seconds = read(&made.seconds)?.trim().parse().map_err(|e| format!("{}: {e}", made.seconds.display()))?;
    let file = relative.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/");
    let (path, targets) = match plan.form {
        Form::Fatbin => (made.fatbin, archs.iter().copied().chain(ptx).collect()),
        Form::Ptx => (made.ptx, vec!["compute_90a"]),
    };
    Ok(Image { file, path, targets, usages, seconds })
}

/// A hash over all that decides what nvcc makes of a file.
fn key(plan: &Plan, flags: &[String], source: &Path, kernels: &Path) -> io::Result<String> {
    let mut hasher = DefaultHasher::new();
    (plan.compiler.version.to_string(), flags, &plan.environment).hash(&mut hasher);
    plan.disassembler.as_ref().map(|_| sass::COLUMNS).hash(&mut hasher);
    for file in sources::closure(source, kernels)? {
        (file.strip_prefix(kernels).unwrap_or(&file), fs::read(&file)?).hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// The files of one source that stay between builds.
struct Made {
    folder: PathBuf,
    fatbin: PathBuf,
    /// With a NUL behind it, as the driver expects.
    ptx: PathBuf,
    log: PathBuf,
    /// Lines of `sass::attach`, where there is a disassembler.
    code: PathBuf,
    seconds: PathBuf,
    key: PathBuf,
}

impl Made {
    fn at(folder: &Path) -> Made {
        Made {
            folder: folder.to_path_buf(),
            fatbin: folder.join("image.fatbin"),
            ptx: folder.join("image.ptx"),
            log: folder.join("ptxas.log"),
            code: folder.join("code.txt"),
            seconds: folder.join("seconds"),
            key: folder.join("key"),
        }
    }

    /// Runs nvcc. The key goes first, so that a build that is cut off starts this file again.
    fn renew(&self, plan: &Plan, flags: &[String], relative: &Path) -> Result<(), String> {
        let fresh = |folder: &Path| -> io::Result<()> {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
            fs::create_dir_all(folder)
        };
        let steps = self.folder.join("steps");
        fresh(&self.folder).and_then(|()| fresh(&steps)).map_err(|e| format!("{}: {e}", self.folder.display()))?;
        let start = Instant::now();
        let output = Command::new(&plan.compiler.path)
            .current_dir(&plan.root)
            .env("LC_ALL", "C")
            .args(flags)
            .args(["-I", "kernels", "--keep", "--keep-dir"])
            .arg(&steps)
            .arg("-o")
            .arg(&self.fatbin)
            .arg(Path::new("kernels").join(relative))
            .output()
            .map_err(|e| format!("{} cannot be run: {e}", plan.compiler.path.display()))?;
        let log = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let said = format!("{}{log}", String::from_utf8_lossy(&output.stdout));
            let host = if has_host_compiler() { "" } else { "\nnvcc needs g++, which is not there: install it" };
            return Err(format!("nvcc failed (WARPDIFF_NVCC=off builds without CUDA kernels)\n{said}{host}"));
        }
        if let Some(complaint) = resources::serialised_products(&log) {
            return Err(complaint);
        }
        write(&self.seconds, &format!("{:.3}\n", start.elapsed().as_secs_f64()))?;
        write(&self.log, &log)?;
        if let Some(disassembler) = &plan.disassembler {
            write(&self.code, &machine_code(disassembler, &steps)?)?;
        }
        write(&self.ptx, &format!("{}\0", kept_ptx(&steps)?))?;
        fs::remove_dir_all(&steps).map_err(|e| format!("{}: {e}", steps.display()))
    }
}

/// nvcc runs g++ for its preprocessor, unless flags of the user name another compiler.
fn has_host_compiler() -> bool {
    Command::new("g++").arg("--version").output().is_ok()
}

/// What the machine code among nvcc's intermediate files is made of: the lines of `sass::attach`.
fn machine_code(disassembler: &Path, steps: &Path) -> Result<String, String> {
    let mut lines = String::new();
    for cubin in kept(steps, "cubin")? {
        let output = Command::new(disassembler)
            .env("LC_ALL", "C")
            .arg("-c")
            .arg(&cubin)
            .output()
            .map_err(|e| format!("{} cannot be run: {e}", disassembler.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{} failed on {}\n{said}", disassembler.display(), cubin.display()));
        }
        lines += &sass::lines(&String::from_utf8_lossy(&output.stdout))?;
    }
    Ok(lines)
}

/// The PTX among nvcc's intermediate files. Those of several architectures must agree in kernels and parameters.
fn kept_ptx(steps: &Path) -> Result<String, String> {
    let texts = kept(steps, "ptx")?.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let layouts = texts.iter().map(|text| resources::parse_ptx(text)).collect::<Result<Vec<_>, _>>()?;
    if layouts.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err("its kernels or their parameters differ between architectures".into());
    }
    texts.into_iter().next_back().ok_or_else(|| "nvcc kept no PTX".into())
}

/// Intermediate files of one kind, sorted.
fn kept(steps: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(steps).map_err(|e| format!("{}: {e}", steps.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == extension));
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
