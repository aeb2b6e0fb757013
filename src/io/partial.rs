//! What exists of an output while it is being made, so that an interrupted run can go on: a folder beside its destination.
//!
//! ```text
//! samples.npz.partial/run.json        the provenance, written first
//!                     samples         the file or the folder itself
//!                     progress.json   how many of its samples are safe on the disk
//! ```
//!
//! The order of writing makes every moment one from which a run can go on. Samples are synced before `progress.json` counts them, and
//! that file is replaced atomically; what lies behind the count is written again, with the same bytes. At the end `samples` is
//! complete and synced, then it gets the destination's name, then the rest is removed.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::FileError;
use super::atomic::{follow_links, parent_of, sync_folder, write_file};
use super::atomic_folder::{Replace, put_in_place};
use super::provenance::Provenance;

const RUN: &str = "run.json";
const PROGRESS: &str = "progress.json";
const SAMPLES: &str = "samples";

/// What to do with the remains of an interrupted run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse to begin while they hold samples.
    Refuse,
    /// Go on with them.
    Resume,
    /// Begin anew.
    Discard,
}

/// An output under construction. Dropped before any sample was recorded, it leaves nothing.
#[derive(Debug)]
pub(super) struct Partial {
    destination: PathBuf,
    folder: PathBuf,
    done: usize,
    finished: bool,
    /// Held open for its lock, which keeps a second process out.
    _lock: File,
}

/// The folder of an output under construction: `{destination}.partial`.
pub fn folder_of(destination: &Path) -> PathBuf {
    let destination = follow_links(destination);
    let mut name = destination.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    parent_of(&destination).join(name)
}

impl Partial {
    /// Opens the folder for an output that has this provenance.
    ///
    /// # Errors
    /// [`FileError::Unwritable`] if another process is at it, if it holds samples and `existing` is to refuse them, or if they
    /// are of another run than the one that wants to go on; [`FileError::WouldOverwrite`] if it holds something else;
    /// [`FileError::Os`].
    pub fn open(destination: &Path, wanted: &Provenance, existing: Existing) -> Result<Self, FileError> {
        let folder = folder_of(destination);
        let destination = follow_links(destination);
        let refused = |problem: String| FileError::Unwritable { path: destination.clone(), problem };
        fs::create_dir_all(&folder).map_err(FileError::os("create the folder", &folder))?;
        let lock = File::open(&folder).map_err(FileError::os("open the folder", &folder))?;
        // A file system without locks leaves us with one writer at a time.
        if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(refused("another process is writing it".into()));
        }
        Replace::IfOnly(is_ours).check(&folder)?;
        let mut partial = Self { destination: destination.clone(), folder, done: 0, finished: false, _lock: lock };
        if let Some((there, done)) = partial.state()?.filter(|&(_, done)| done > 0) {
            partial.done = done;
            let shown = partial.folder.display();
            match existing {
                Existing::Refuse => {
                    return Err(refused(format!(
                        "{shown} holds {done} of {} samples of an interrupted run; add --resume to go on with it, or remove that \
                         folder",
                        there.range.len()
                    )));
                }
                Existing::Resume => {
                    let differences = there.differences(wanted);
                    if !differences.is_empty() {
                        return Err(refused(format!(
                            "{shown} is of another run and cannot be resumed ({}); give the same options, or remove that folder",
                            differences.join("; ")
                        )));
                    }
                    return Ok(partial);
                }
                Existing::Discard => partial.done = 0,
            }
        }
        partial.clear()?;
        partial.write(RUN, &wanted.to_json())?;
        Ok(partial)
    }

    /// Removes what a run left that was killed between giving its output the final name and cleaning up.
    ///
    /// # Errors
    /// [`FileError::Os`].
    pub fn remove_if_of(destination: &Path, complete: &Provenance) -> Result<(), FileError> {
        let folder = folder_of(destination);
        let run = fs::read_to_string(folder.join(RUN)).ok();
        if run.as_deref().and_then(Provenance::parse).as_ref() == Some(complete) {
            fs::remove_dir_all(&folder).map_err(FileError::os("remove the folder", &folder))?;
        }
        Ok(())
    }

    /// Where the file or the folder with the samples is.
    pub fn samples(&self) -> PathBuf {
        self.folder.join(SAMPLES)
    }

    /// The name that it will have.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// The folder of all this.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Samples that are safe.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Notes that the first `samples` samples are on the disk.
    pub fn record(&mut self, samples: usize) -> Result<(), FileError> {
        if samples != self.done {
            self.write(PROGRESS, &serde_json::json!({ SAMPLES: samples }).to_string())?;
            self.done = samples;
        }
        Ok(())
    }

    /// Gives the samples, complete and synced, their name; with `replace` they are a folder.
    pub fn finish(mut self, replace: Option<Replace>) -> Result<(), FileError> {
        let (samples, destination) = (self.samples(), self.destination.clone());
        match replace {
            Some(replace) => put_in_place(&samples, &destination, replace)?,
            None => {
                fs::rename(&samples, &destination).map_err(FileError::os("rename the finished", &destination))?;
                sync_folder(parent_of(&destination))?;
            }
        }
        self.finished = true;
        self.remove()
    }

    /// Provenance and progress, if there is a run to go on with.
    fn state(&self) -> Result<Option<(Provenance, usize)>, FileError> {
        if !self.samples().exists() {
            return Ok(None);
        }
        let (Some(run), Some(progress)) = (self.read(RUN)?, self.read(PROGRESS)?) else { return Ok(None) };
        let count = serde_json::from_str(&progress).ok().and_then(|v: serde_json::Value| v[SAMPLES].as_u64());
        match (Provenance::parse(&run), count) {
            (Some(run), Some(count)) if count <= run.range.len() as u64 => Ok(Some((run, count as usize))),
            _ => Err(FileError::Unwritable {
                path: self.destination.clone(),
                problem: format!("{RUN} or {PROGRESS} in {} is damaged; remove that folder", self.folder.display()),
            }),
        }
    }

    fn read(&self, name: &str) -> Result<Option<String>, FileError> {
        let path = self.folder.join(name);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(FileError::os("read", &path)),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), FileError> {
        write_file(&self.folder.join(name), |file| file.write_all(text.as_bytes()))
    }

    /// Progress goes first: without it the rest counts for nothing.
    fn clear(&self) -> Result<(), FileError> {
        let progress = self.folder.join(PROGRESS);
        match fs::remove_file(&progress) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(FileError::os("remove", &progress)(error));
            }
            _ => sync_folder(&self.folder)?,
        }
        let samples = self.samples();
        let removed = if samples.is_dir() { fs::remove_dir_all(&samples) } else { fs::remove_file(&samples) };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(FileError::os("remove", &samples)(error)),
            _ => Ok(()),
        }
    }

    fn remove(&self) -> Result<(), FileError> {
        fs::remove_dir_all(&self.folder).map_err(FileError::os("remove the folder", &self.folder))?;
        sync_folder(parent_of(&self.folder))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished && self.done == 0 {
            // A destructor has nobody to report to; what stays behind holds no samples, and the next run begins over it.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// The names of this module, and the temporary names under which two of them are written.
fn is_ours(name: &str) -> bool {
    let written = [RUN, PROGRESS];
    let temporary =
        |of: &str| name.strip_prefix('.').and_then(|n| n.strip_prefix(of)).is_some_and(|n| n.starts_with(".tmp-"));
    name == SAMPLES || written.contains(&name) || written.into_iter().any(temporary)
}
