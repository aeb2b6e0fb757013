//! A file that appears under its name only when it is complete.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::FileError;

/// From this many files on, one sync of the whole file system is faster than one for each file.
const SYNC_ALL_FROM: usize = 256;

/// A file under construction: written under a temporary name beside its destination, renamed by [`AtomicFile::commit`].
///
/// Dropping it without `commit` (an error, a panic, a full disk) removes the temporary file and leaves the destination untouched.
/// A killed process leaves a file named `.{name}.tmp-{pid}-{n}`; the next write to the same destination removes it. The writer holds
/// a lock on its temporary file, so that "left over" is told from "being written" even when process ids repeat, as in containers.
#[derive(Debug)]
pub struct AtomicFile {
    destination: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    committed: bool,
}

impl AtomicFile {
    /// Starts a file that will be called `destination`. Missing parent folders are created; a symbolic link stays and its target is
    /// replaced.
    ///
    /// # Errors
    /// [`FileError::Os`] if the folder or the temporary file cannot be created; [`FileError::Unwritable`] if the name belongs to a folder
    /// or a device.
    pub fn create(destination: &Path) -> Result<Self, FileError> {
        let destination = &follow_links(destination);
        check_replaceable(destination)?;
        let parent = parent_of(destination);
        fs::create_dir_all(parent).map_err(FileError::os("create the folder", parent))?;
        remove_stale(destination, |path| fs::remove_file(path))?;
        let (temporary, file) =
            claim_temporary(destination, |path| OpenOptions::new().read(true).write(true).create_new(true).open(path))?;
        Ok(Self {
            destination: destination.to_path_buf(),
            temporary,
            file: BufWriter::with_capacity(1 << 18, file),
            committed: false,
        })
    }

    /// The name the file will have.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Flushes the file to the disk, then gives it its name, replacing any previous file.
    ///
    /// # Errors
    /// [`FileError::Os`]; the previous file is then still in place and the temporary one removed.
    pub fn commit(mut self) -> Result<(), FileError> {
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(FileError::os("write", &self.destination))?;
        fs::rename(&self.temporary, &self.destination)
            .map_err(FileError::os("rename the finished", &self.destination))?;
        self.committed = true;
        sync_folder(parent_of(&self.destination))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // A destructor has nobody to report to; what stays behind is removed by the next write.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes `destination` atomically with whatever `fill` writes.
///
/// # Errors
/// [`FileError::Os`] with the first failed operation, `fill`'s included; `destination` is then unchanged.
///
/// ```
/// # let folder = tempfile::tempdir().unwrap();
/// use std::io::Write;
/// let path = folder.path().join("config.json");
/// warpdiff::io::atomic::write_file(&path, |file| file.write_all(b"{}"))?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"{}");
/// # Ok::<(), warpdiff::io::FileError>(())
/// ```
pub fn write_file(destination: &Path, fill: impl FnOnce(&mut AtomicFile) -> io::Result<()>) -> Result<(), FileError> {
    let mut file = AtomicFile::create(destination)?;
    fill(&mut file).map_err(FileError::os("write", destination))?;
    file.commit()
}

/// Renaming a file over a device, /dev/null for one, would replace it for everybody.
pub(super) fn check_replaceable(destination: &Path) -> Result<(), FileError> {
    if destination.exists() && !destination.is_file() {
        return Err(FileError::Unwritable {
            path: destination.to_path_buf(),
            problem: "it exists and is not a regular file; choose another name".into(),
        });
    }
    Ok(())
}

/// What a chain of symbolic links ends at, whether that exists or not.
pub(super) fn follow_links(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    // Longer chains are loops, which the operating system refuses in its own words.
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(target) => path = parent_of(&path).join(target),
            Err(_) => break,
        }
    }
    path
}

/// The folder `path` lies in; `.` for a bare name.
pub(super) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `.{name}{suffix}` beside `path`.
pub(super) fn hidden_sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or(OsStr::new("unnamed")));
    name.push(suffix);
    parent_of(path).join(name)
}

/// Makes the entries of a folder durable: without this a rename may be lost at a power failure.
pub(super) fn sync_folder(folder: &Path) -> Result<(), FileError> {
    let result = File::open(folder).and_then(|handle| handle.sync_all());
    match result {
        // Some network and FUSE file systems cannot sync a folder; they have no stronger promise to offer.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other.map_err(FileError::os("sync the folder", folder)),
    }
}

/// Makes every file and folder under `root` durable.
pub(super) fn sync_tree(root: &Path) -> Result<(), FileError> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    let mut next = 0;
    while let Some(folder) = folders.get(next).cloned() {
        next += 1;
        for entry in fs::read_dir(&folder).map_err(FileError::os("list", &folder))? {
            let entry = entry.map_err(FileError::os("list", &folder))?;
            let kind = entry.file_type().map_err(FileError::os("inspect", &folder))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    sync_files(root, &files)?;
    folders.iter().try_for_each(|folder| sync_folder(folder))
}

/// Makes the contents of `files`, which lie on the file system of `folder`, durable.
pub(super) fn sync_files(folder: &Path, files: &[PathBuf]) -> Result<(), FileError> {
    #[cfg(target_os = "linux")]
    if files.len() >= SYNC_ALL_FROM {
        let handle = File::open(folder).map_err(FileError::os("open the folder", folder))?;
        return rustix::fs::syncfs(&handle).map_err(io::Error::from).map_err(FileError::os("sync", folder));
    }
    files
        .iter()
        .try_for_each(|file| File::open(file).and_then(|handle| handle.sync_all()).map_err(FileError::os("sync", file)))
}

/// Creates a fresh temporary entry beside `destination` with `make`, and locks the handle that `make` returns.
pub(super) fn claim_temporary(
    destination: &Path,
    mut make: impl FnMut(&Path) -> io::Result<File>,
) -> Result<(PathBuf, File), FileError> {
    let process = std::process::id();
    let mut attempt = 0u32;
    loop {
        let temporary = hidden_sibling(destination, &format!(".tmp-{process}-{attempt}"));
        attempt += 1;
        let handle = match make(&temporary) {
            Ok(handle) => handle,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 10_000 => {
                continue;
            }
            Err(error) => return Err(FileError::os("create", &temporary)(error)),
        };
        match handle.try_lock() {
            // Another writer saw the entry before it was locked and took it for a left-over.
            Err(TryLockError::WouldBlock) => continue,
            // A file system without locks: nobody can lock, so nobody will take it for a left-over.
            Err(TryLockError::Error(_)) => return Ok((temporary, handle)),
            Ok(()) if temporary.exists() => return Ok((temporary, handle)),
            Ok(()) => continue,
        }
    }
}

/// Removes temporary entries for `destination` that no living writer holds.
pub(super) fn remove_stale(destination: &Path, remove: impl Fn(&Path) -> io::Result<()>) -> Result<(), FileError> {
    let parent = parent_of(destination);
    let pattern = hidden_sibling(destination, ".tmp-");
    let Some(prefix) = pattern.file_name() else {
        return Ok(());
    };
    let entries = fs::read_dir(parent).map_err(FileError::os("list", parent))?;
    for entry in entries {
        let path = entry.map_err(FileError::os("list", parent))?.path();
        if path.file_name().is_some_and(|name| is_temporary(name, prefix))
            && File::open(&path).is_ok_and(|handle| handle.try_lock().is_ok())
        {
            match remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::os("remove the left-over", &path)(error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether `name` is `prefix` followed by `{digits}-{digits}`, so that only names this module makes are ever removed.
fn is_temporary(name: &OsStr, prefix: &OsStr) -> bool {
    let (name, prefix) = (name.as_encoded_bytes(), prefix.as_encoded_bytes());
    let Some(rest) = name.strip_prefix(prefix) else {
        return false;
    };
    let mut parts = rest.split(|&byte| byte == b'-');
    let digits = |part: Option<&[u8]>| part.is_some_and(|text| !text.is_empty() && text.iter().all(u8::is_ascii_digit));
    digits(parts.next()) && digits(parts.next()) && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_only_at_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_file(&path, |file| file.write_all(b"old")).unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new, longer").unwrap();
        file.flush().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new, longer");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_file(&path, |file| file.write_all(b"old")).unwrap();
        let error = write_file(&path, |file| {
            file.write_all(&[7; 1 << 20])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(error.to_string().contains("a.bin"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn left_overs_go_and_living_writers_and_other_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        for name in [".a.bin.tmp-1-0", ".a.bin.tmp-99-12", ".a.bin.tmp-x-1", ".b.bin.tmp-1-0", ".a.bin.tmp-1"] {
            fs::write(folder.path().join(name), b"half").unwrap();
        }
        let mut living = AtomicFile::create(&path).unwrap();
        living.write_all(b"first").unwrap();
        write_file(&path, |file| file.write_all(b"second")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        living.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), [".a.bin.tmp-1", ".a.bin.tmp-x-1", ".b.bin.tmp-1-0", "a.bin"]);
    }

    #[test]
    fn a_folder_in_the_way_is_an_error_that_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        fs::create_dir(&path).unwrap();
        assert!(matches!(write_file(&path, |file| file.write_all(b"x")), Err(FileError::Unwritable { .. })));
        assert_eq!(names(folder.path()), ["a.bin"]);
        assert!(AtomicFile::create(Path::new("/dev/null")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_its_target_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (link, target) = (folder.path().join("link"), folder.path().join("deep/target"));
        std::os::unix::fs::symlink("deep/target", &link).unwrap();
        for content in [b"1", b"2"] {
            write_file(&link, |file| file.write_all(content)).unwrap();
            assert!(link.is_symlink());
            assert_eq!(fs::read(&target).unwrap(), content);
        }
    }
}
