//! Finding shared libraries at run time.

use std::error::Error;
use std::path::{Path, PathBuf};

use libloading::Library;

use super::PeerError;

/// Folders of NVIDIA's Python packages below site-packages.
const PACKAGES: [&str; 4] = ["", "nvidia/cudnn/lib", "nvidia/cu13/lib", "nvidia/cublas/lib"];

/// A library by its names, the best first.
pub(super) struct Wanted {
    /// File names, the preferred version first.
    pub files: &'static [&'static str],
    /// What installs the first.
    pub package: &'static str,
}

impl Wanted {
    /// Loads it: from `folder`, from the packages below it, or from where the system looks.
    pub fn load(&self, folder: Option<&Path>) -> Result<Library, PeerError> {
        let mut reason = String::new();
        for path in self.places(folder) {
            // A path with a folder that is not there would only blur the message.
            if path.components().count() > 1 && !path.exists() {
                continue;
            }
            // SAFETY: loading runs the library's initialisers, which is what it is for.
            match unsafe { Library::new(&path) } {
                Ok(library) => return Ok(library),
                // What the loader says is the source of the error, which itself says only what was called.
                Err(error) if reason.is_empty() => {
                    reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                }
                Err(_) => {}
            }
        }
        Err(PeerError::Missing { file: self.files[0], package: self.package, reason })
    }

    fn places(&self, folder: Option<&Path>) -> Vec<PathBuf> {
        let below = |file: &&str| {
            let file = *file;
            folder.into_iter().flat_map(move |f| PACKAGES.map(|package| f.join(package).join(file))).collect::<Vec<_>>()
        };
        self.files.iter().flat_map(below).chain(self.files.iter().map(PathBuf::from)).collect()
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `T` is the type of the function, and it is not called after the library is dropped.
    pub unsafe fn function<T: Copy>(&self, library: &Library, function: &'static str) -> Result<T, PeerError> {
        // SAFETY: the caller's.
        match unsafe { library.get::<T>(function.as_bytes()) } {
            Ok(symbol) => Ok(*symbol),
            Err(_) => Err(PeerError::Function { file: self.files[0], function }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: Wanted =
        Wanted { files: &["libwarpdiff_nowhere.so.9", "libwarpdiff_nowhere.so.8"], package: "nvidia-nowhere" };

    #[test]
    fn folders_of_packages_come_before_the_system() {
        let places = NOWHERE.places(Some(Path::new("/site")));
        assert_eq!(places[0], Path::new("/site/libwarpdiff_nowhere.so.9"));
        assert_eq!(places[1], Path::new("/site/nvidia/cudnn/lib/libwarpdiff_nowhere.so.9"));
        assert_eq!(places[8], Path::new("libwarpdiff_nowhere.so.9"));
        assert_eq!(NOWHERE.places(None).len(), 2);
    }

    #[test]
    fn a_missing_library_is_named_with_what_to_do() {
        for folder in [None, Some(Path::new("/nowhere"))] {
            let error = NOWHERE.load(folder).err().unwrap().to_string();
            let start = "libwarpdiff_nowhere.so.9 was not found: pip install nvidia-nowhere, or put its folder into LD_LIBRARY_PATH";
            assert!(error.starts_with(start), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_missing_too() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libwarpdiff_nowhere.so.9"), "text").unwrap();
        let error = NOWHERE.load(Some(folder.path())).err().unwrap().to_string();
        assert!(error.contains("libwarpdiff_nowhere.so.9: "), "{error}");
    }
}
