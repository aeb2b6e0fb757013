//! Objects of the simulator, compiled in parallel and again only when something that they are made of changed.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::nvcc::sources::closure;

/// Compilations to be done.
pub struct Objects {
    include: PathBuf,
    cache: PathBuf,
    jobs: Vec<Job>,
}

struct Job {
    source: PathBuf,
    flags: Vec<&'static str>,
    object: PathBuf,
}

impl Objects {
    /// Objects are kept in `cache` under a hash of sources, headers below `include`, flags and compiler.
    pub fn new(include: &Path, cache: PathBuf) -> Self {
        fs::create_dir_all(&cache).unwrap_or_else(|e| panic!("{}: {e}", cache.display()));
        Self { include: include.to_path_buf(), cache, jobs: Vec::new() }
    }

    /// Adds sources to compile with more flags; returns where their objects will be.
    pub fn add<'a>(
        &mut self,
        flags: &[&[&'static str]],
        sources: impl IntoIterator<Item = &'a PathBuf>,
    ) -> Vec<PathBuf> {
        let flags = flags.concat();
        let compiler = super::compiler(&self.include).get_compiler();
        let mut objects = Vec::new();
        for source in sources {
            let mut hasher = DefaultHasher::new();
            (&flags, compiler.path(), compiler.args()).hash(&mut hasher);
            let files = closure(source, &self.include).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
            for file in files {
                let content = fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
                (file, content).hash(&mut hasher);
            }
            let name = source.file_stem().unwrap_or_default().to_string_lossy();
            let object = self.cache.join(format!("{name}-{:016x}.o", hasher.finish()));
            self.jobs.push(Job { source: source.clone(), flags: flags.clone(), object: object.clone() });
            objects.push(object);
        }
        objects
    }

    /// Compiles what is not there yet, and removes what is no longer needed.
    pub fn compile(self) {
        let keep: Vec<&PathBuf> = self.jobs.iter().map(|job| &job.object).collect();
        for entry in fs::read_dir(&self.cache).into_iter().flatten().flatten() {
            if !keep.contains(&&entry.path()) {
                // A leftover costs space only.
                let _ = fs::remove_file(entry.path());
            }
        }
        let missing: Vec<&Job> = self.jobs.iter().filter(|job| !job.object.is_file()).collect();
        let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let workers = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
        thread::scope(|scope| {
            for _ in 0..workers.clamp(1, missing.len().max(1)) {
                scope.spawn(|| {
                    while let Some(job) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(failure) = job.run(&self.include) {
                            failures.lock().unwrap_or_else(|e| e.into_inner()).push(failure);
                        }
                    }
                });
            }
        });
        let failures = failures.into_inner().unwrap_or_else(|e| e.into_inner());
        assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    }
}

impl Job {
    fn run(&self, include: &Path) -> Result<(), String> {
        // Under another name first, so that a build that is cut off leaves no half object.
        let unfinished = self.object.with_extension("tmp");
        let mut command: Command = super::compiler(include).get_compiler().to_command();
        command.args(&self.flags).arg("-c").arg(&self.source).arg("-o").arg(&unfinished);
        let output = command.output().map_err(|e| format!("the simulator needs a C++20 compiler: {e}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("{}:\n{said}", self.source.display()));
        }
        if !said.trim().is_empty() {
            println!("cargo:warning={}: {}", self.source.display(), said.replace('\n', " "));
        }
        fs::rename(&unfinished, &self.object).map_err(|e| format!("{}: {e}", self.object.display()))
    }
}
