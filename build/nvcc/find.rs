//! Where nvcc is, and whether it is new enough. Pure: the environment and the file system come in as functions.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// The oldest nvcc that compiles the kernels: C++20, `__grid_constant__`, sm_90a with all of PTX 8.4.
pub const OLDEST: Version = Version { major: 12, minor: 4, build: 0 };

/// Origin of a compiler that was found on `PATH`.
pub const PATH: &str = "PATH";

/// Version of the CUDA compiler, as `nvcc --version` prints it: `V13.0.88`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub build: u32,
}

impl Version {
    /// Reads the output of `nvcc --version`.
    pub fn parse(text: &str) -> Option<Version> {
        let number = text.split_whitespace().find_map(|word| word.strip_prefix('V'))?;
        let mut parts = number.split('.').map(|part| part.parse().ok());
        Some(Version { major: parts.next()??, minor: parts.next()??, build: parts.next()?? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.build)
    }
}

/// A place where nvcc may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub path: PathBuf,
    /// What led there: a variable, `PATH` or a folder.
    pub origin: String,
}

/// An nvcc that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    pub path: PathBuf,
    pub origin: String,
    pub version: Version,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nvcc {} from {}", self.version, self.origin)
    }
}

/// Why there is no compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// `WARPDIFF_NVCC=off`.
    Off,
    /// No nvcc anywhere.
    NotFound,
    /// The best one found is too old.
    TooOld(Compiler),
    /// The one that was found does not run.
    Broken(Candidate),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remedy = "run scripts/setup-cuda (no root needed), or install CUDA";
        let oldest = format!("{}.{}", OLDEST.major, OLDEST.minor);
        match self {
            Missing::Off => write!(f, "WARPDIFF_NVCC=off; build again without it"),
            Missing::NotFound => write!(f, "nvcc was not found; {remedy} {oldest} or newer"),
            Missing::TooOld(compiler) => write!(f, "{compiler} is older than {oldest}; {remedy} {oldest} or newer"),
            Missing::Broken(Candidate { path, origin }) => {
                write!(f, "{} (from {origin}) does not tell its version; {remedy} {oldest} or newer", path.display())
            }
        }
    }
}

/// Every nvcc there is, in the order of preference: `NVCC` (alone, when set), `CUDA_HOME`, `CUDA_PATH`, `PATH`, the usual
/// folders with the newest CUDA first, `.cuda/` of this source tree. An error when `NVCC` names something that is not there.
pub fn candidates(
    variable: &dyn Fn(&str) -> Option<OsString>,
    is_file: &dyn Fn(&Path) -> bool,
    entries: &dyn Fn(&Path) -> Vec<PathBuf>,
    root: &Path,
) -> Result<Vec<Candidate>, String> {
    let program = format!("nvcc{}", std::env::consts::EXE_SUFFIX);
    let on_path = |name: &Path| {
        let folders = variable(PATH).unwrap_or_default();
        std::env::split_paths(&folders).map(|folder| folder.join(name)).filter(|path| is_file(path)).collect::<Vec<_>>()
    };
    if let Some(nvcc) = variable("NVCC").map(PathBuf::from) {
        let named = if nvcc.components().count() > 1 { Some(nvcc.clone()) } else { on_path(&nvcc).into_iter().next() };
        let path = named.filter(|path| is_file(path));
        let path = path.ok_or_else(|| format!("NVCC={} is not a file; correct it or unset it", nvcc.display()))?;
        return Ok(vec![Candidate { path, origin: "NVCC".into() }]);
    }
    let mut found = Vec::new();
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = variable(name) {
            found.push((Path::new(&home).join("bin").join(&program), name.to_string()));
        }
    }
    found.extend(on_path(Path::new(&program)).into_iter().map(|path| (path, PATH.to_string())));
    let mut homes = vec![PathBuf::from("/usr/local/cuda")];
    homes.extend(newest_first(entries(Path::new("/usr/local")), "cuda-"));
    homes.push(PathBuf::from("/opt/cuda"));
    found.extend(homes.into_iter().map(|home| (home.join("bin").join(&program), home.display().to_string())));
    let own = newest_first(entries(&root.join(".cuda/nvidia")), "cu").into_iter().map(|home| home.join("bin"));
    found.extend(own.map(|bin| (bin.join(&program), ".cuda".to_string())));
    Ok(found.into_iter().filter(|(path, _)| is_file(path)).map(|(path, origin)| Candidate { path, origin }).collect())
}

/// Another program of the toolkit: beside nvcc, else on `PATH`.
pub fn beside_or_on_path(
    nvcc: &Path,
    program: &str,
    variable: &dyn Fn(&str) -> Option<OsString>,
    is_file: &dyn Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let program = format!("{program}{}", std::env::consts::EXE_SUFFIX);
    let folders = variable(PATH).unwrap_or_default();
    let beside = nvcc.parent().map(Path::to_path_buf);
    beside
        .into_iter()
        .chain(std::env::split_paths(&folders))
        .map(|folder| folder.join(&program))
        .find(|path| is_file(path))
}

/// Those paths whose name is `prefix` and a version, the highest version first.
fn newest_first(paths: Vec<PathBuf>, prefix: &str) -> Vec<PathBuf> {
    let version = |path: &PathBuf| -> Option<Vec<u32>> {
        let digits = path.file_name()?.to_str()?.strip_prefix(prefix)?;
        digits.split('.').map(|part| part.parse().ok()).collect()
    };
    let mut versions: Vec<_> = paths.into_iter().filter_map(|path| Some((version(&path)?, path))).collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, path)| path).collect()
}

/// The first candidate that is new enough; `version_text` runs `nvcc --version`.
pub fn choose(candidates: Vec<Candidate>, version_text: impl Fn(&Path) -> Option<String>) -> Result<Compiler, Missing> {
    let mut missing = Missing::NotFound;
    for candidate in candidates {
        let Some(version) = version_text(&candidate.path).as_deref().and_then(Version::parse) else {
            if missing == Missing::NotFound {
                missing = Missing::Broken(candidate);
            }
            continue;
        };
        let compiler = Compiler { path: candidate.path, origin: candidate.origin, version };
        if version >= OLDEST {
            return Ok(compiler);
        }
        if !matches!(&missing, Missing::TooOld(best) if best.version >= version) {
            missing = Missing::TooOld(compiler);
        }
    }
    Err(missing)
}
