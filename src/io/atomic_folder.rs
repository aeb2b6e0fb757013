//! A folder that is replaced as a whole: a reader finds the old one or the new one, complete, whenever the writer is killed.
//!
//! The new folder is built as `.{name}.tmp-{pid}-{n}` beside its destination and synced. Then
//!
//! - where nothing has that name yet, it is renamed;
//! - on Linux an existing folder is swapped in one step (`renameat2` with `RENAME_EXCHANGE`), so the name is never vacant;
//! - where the file system cannot swap, the old folder is renamed to `.{name}.old` and the new one takes its place. Between these two
//!   renames the name is vacant and the old folder lies under `.{name}.old`: [`locate`] finds it there, [`recover`] puts it back.
//!
//! A reader that opens several files of one folder while it is replaced should open it once through [`locate`] and retry when a file
//! is missing, since the old folder is removed after the swap.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::FileError;
use super::atomic::{claim_temporary, follow_links, hidden_sibling, parent_of, remove_stale, sync_folder, sync_tree};

/// Whether a folder that already has the destination's name may be replaced, which deletes what it holds.
#[derive(Debug, Clone, Copy)]
pub enum Replace {
    /// Only an empty folder.
    IfEmpty,
    /// Only if the function accepts the name of every entry, that is, if it holds nothing but what an earlier run wrote.
    IfOnly(fn(&str) -> bool),
    /// Whatever it holds: for folders whose name the program chose itself.
    Always,
}

impl Replace {
    pub(super) fn check(self, folder: &Path) -> Result<(), FileError> {
        let accepts: fn(&str) -> bool = match self {
            Replace::Always => return Ok(()),
            Replace::IfEmpty => |_| false,
            Replace::IfOnly(accepts) => accepts,
        };
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(FileError::os("list", folder))?,
        };
        for entry in entries {
            let name = entry.map_err(FileError::os("list", folder))?.file_name();
            if !name.to_str().is_some_and(accepts) {
                return Err(FileError::WouldOverwrite {
                    path: folder.to_path_buf(),
                    found: name.to_string_lossy().into_owned(),
                });
            }
        }
        Ok(())
    }
}

/// A folder under construction; see the [module page](self). Dropped without [`commit`](Self::commit) it removes what it built.
#[derive(Debug)]
pub struct AtomicFolder {
    destination: PathBuf,
    temporary: PathBuf,
    replace: Replace,
    /// Held open for its lock, which marks the temporary folder as in use.
    _lock: File,
    committed: bool,
}

impl AtomicFolder {
    /// Starts a folder that will be called `destination`. Repairs an interrupted replacement first and removes left-overs.
    ///
    /// # Errors
    /// [`FileError::WouldOverwrite`] if `replace` forbids to replace what is there; [`FileError::Os`].
    pub fn create(destination: &Path, replace: Replace) -> Result<Self, FileError> {
        let destination = &follow_links(destination);
        check_named(destination)?;
        let parent = parent_of(destination);
        fs::create_dir_all(parent).map_err(FileError::os("create the folder", parent))?;
        recover(destination)?;
        replace.check(destination)?;
        remove_stale(destination, |path| fs::remove_dir_all(path))?;
        let (temporary, lock) = claim_temporary(destination, |path| {
            fs::create_dir(path)?;
            File::open(path)
        })?;
        Ok(Self { destination: destination.to_path_buf(), temporary, replace, _lock: lock, committed: false })
    }

    /// Where to put the files for now. Plain writes will do: [`commit`](Self::commit) syncs everything.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Syncs the new folder and puts it in the destination's place.
    ///
    /// # Errors
    /// [`FileError::Os`] or [`FileError::WouldOverwrite`] (something appeared meanwhile); the old folder is then still there.
    pub fn commit(mut self) -> Result<(), FileError> {
        sync_tree(&self.temporary)?;
        put_in_place(&self.temporary, &self.destination, self.replace)?;
        self.committed = true;
        Ok(())
    }
}

/// A folder is renamed, so it needs a name.
pub(super) fn check_named(destination: &Path) -> Result<(), FileError> {
    if destination.file_name().is_none() {
        return Err(FileError::Unwritable {
            path: destination.to_path_buf(),
            problem: "it has no name of its own; give the folder by name, not as . or ..".into(),
        });
    }
    Ok(())
}

/// Gives the folder `new`, whose contents are on the disk already, the name `destination`; what had it before is removed.
pub(super) fn put_in_place(new: &Path, destination: &Path, replace: Replace) -> Result<(), FileError> {
    replace.check(destination)?;
    let parent = parent_of(destination);
    match swap(new, destination, exchange)? {
        Swapped::Vacant => {}
        Swapped::Exchanged => {
            sync_folder(parent)?;
            remove_folder(new)?;
        }
        Swapped::MovedAside => {
            sync_folder(parent)?;
            // Under the lock, so that another writer's old folder is not mistaken for ours.
            recover(destination)?;
        }
    }
    sync_folder(parent)
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        if !self.committed {
            // A destructor has nobody to report to; what stays behind is removed by the next write.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// The folder a reader should open for `destination`: the destination itself, or the old folder of an interrupted replacement.
///
/// Changes nothing on the disk, so it serves readers without permission to write.
pub fn locate(destination: &Path) -> PathBuf {
    let destination = follow_links(destination);
    let destination = destination.as_path();
    let old = old_name(destination);
    // A writer renames old away and new in, in this order: whoever sees neither old nor new looked between, and sees new next.
    if !destination.exists() && old.exists() && !destination.exists() {
        return old;
    }
    destination.to_path_buf()
}

/// What [`recover`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing to repair.
    Clean,
    /// A replacement was cut off before the new folder had its name; the old folder has it again.
    RestoredOld,
    /// A replacement was cut off after the new folder had its name; the old folder was removed.
    RemovedOld,
}

/// Repairs a replacement that was cut off on a file system without an atomic swap. Call it before opening a folder for writing.
///
/// # Errors
/// [`FileError::Os`]. A missing parent folder is not an error: there is nothing to repair.
pub fn recover(destination: &Path) -> Result<Recovery, FileError> {
    let destination = &follow_links(destination);
    let parent = parent_of(destination);
    let old = old_name(destination);
    if !old.exists() {
        return Ok(Recovery::Clean);
    }
    let _guard = lock_folder(parent)?;
    let recovery = match (destination.exists(), old.exists()) {
        (_, false) => return Ok(Recovery::Clean),
        (true, true) => {
            remove_folder(&old)?;
            Recovery::RemovedOld
        }
        (false, true) => {
            fs::rename(&old, destination).map_err(FileError::os("restore", destination))?;
            Recovery::RestoredOld
        }
    };
    sync_folder(parent)?;
    Ok(recovery)
}

#[derive(Debug, PartialEq, Eq)]
enum Swapped {
    /// Nothing had the name.
    Vacant,
    /// The old folder is now under the temporary name.
    Exchanged,
    /// The old folder is now under [`old_name`].
    MovedAside,
}

/// Gives `temporary` the name `destination`. `exchange` swaps two folders in one step; `Ok(false)` says that it cannot do so here.
fn swap(
    temporary: &Path,
    destination: &Path,
    exchange: impl Fn(&Path, &Path) -> io::Result<bool>,
) -> Result<Swapped, FileError> {
    // Another writer may create or remove the destination between a look and a rename, hence a few tries.
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..8 {
        if !destination.exists() {
            match fs::rename(temporary, destination) {
                Ok(()) => return Ok(Swapped::Vacant),
                Err(error) => last = error,
            }
            continue;
        }
        match exchange(temporary, destination) {
            Ok(true) => return Ok(Swapped::Exchanged),
            Ok(false) => {
                let _guard = lock_folder(parent_of(destination))?;
                match move_old_aside(destination).and_then(|()| fs::rename(temporary, destination)) {
                    Ok(()) => return Ok(Swapped::MovedAside),
                    Err(error) => last = error,
                }
            }
            Err(error) => last = error,
        }
    }
    Err(FileError::os("replace", destination)(last))
}

/// First half of the replacement without an atomic swap.
fn move_old_aside(destination: &Path) -> io::Result<()> {
    let old = old_name(destination);
    if old.exists() && destination.exists() {
        fs::remove_dir_all(&old)?;
    }
    match fs::rename(destination, &old) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Swaps two names in one step, or `Ok(false)` where kernel or file system has no such operation.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// No portable way to swap two names outside Linux.
#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<bool> {
    Ok(false)
}

fn old_name(destination: &Path) -> PathBuf {
    hidden_sibling(destination, ".old")
}

/// Serialises the non-atomic renames of this module within one parent folder, for as long as the handle lives.
fn lock_folder(folder: &Path) -> Result<File, FileError> {
    let handle = File::open(folder).map_err(FileError::os("open the folder", folder))?;
    // A file system without locks leaves us with one writer at a time, which is how this module is meant to be used.
    let _ = handle.lock();
    Ok(handle)
}

fn remove_folder(folder: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(folder) {
        // Another writer's clean-up was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(FileError::os("remove the old", folder)),
    }
}

#[cfg(test)]
mod tests;
