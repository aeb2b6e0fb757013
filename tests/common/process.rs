//! Runs of the command-line program.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::models;
use warpdiff::unet::UNetConfig;

/// How a run of the program ended.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The program of this build, unless `WARPDIFF_BIN` names another: tests may run on a machine where they were not built.
pub fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let built = || env!("CARGO_BIN_EXE_warpdiff").into();
    let mut command = Command::new(std::env::var_os("WARPDIFF_BIN").unwrap_or_else(built));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs the program; a signal shows as a code below 0.
pub fn warpdiff<S: AsRef<OsStr>>(args: &[S]) -> Run {
    let output = command(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Run {
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// Standard output as one JSON value.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {:?}", self.stdout))
    }

    /// Failed with this code and a message of ours that has every word.
    #[track_caller]
    pub fn expect_error(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        assert!(self.stderr.contains("error: "), "{}", self.stderr);
        let pieces: Vec<&str> = self.stderr.split(": ").map(str::trim).filter(|p| p.len() > 20).collect();
        assert!(!pieces.iter().enumerate().any(|(i, p)| pieces[..i].contains(p)), "said twice: {}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in: {}", self.stderr);
        }
    }
}

/// A temporary folder with what the tests start from.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_string()
    }

    /// A model folder with random weights and 8 timesteps.
    pub fn model(&self, name: &str, config: &UNetConfig) -> String {
        std::fs::create_dir_all(self.path(name)).unwrap();
        models::save(&self.path(name), config, 8);
        self.arg(name)
    }

    /// A file with a configuration, for `train --config`.
    pub fn config(&self, config: &UNetConfig) -> String {
        std::fs::write(self.path("config.json"), config.to_json()).unwrap();
        self.arg("config.json")
    }

    /// Everything below the folder, hidden entries included.
    pub fn entries(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        walk(self.folder.path(), &mut all);
        all.sort();
        all
    }
}

fn walk(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, all);
        }
        all.push(path);
    }
}
