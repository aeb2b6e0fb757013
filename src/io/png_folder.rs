//! Samples as a folder of PNGs, named by their index in the run: `000000.png`, `000001.png`, ...; `labels.csv`, if labelled, and
//! `warpdiff.json`, the provenance. Each PNG holds its own as a text.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::atomic::{sync_files, sync_folder};
use super::canvas::encode_png;
use super::provenance::{FILE, Provenance};
use super::sink::{Format, SampleSet};
use super::{FileError, ImageBatch};

const LABELS: &str = "labels.csv";

/// Writes a PNG for each sample.
pub(super) struct FolderFormat {
    folder: PathBuf,
    provenance: Provenance,
    labels: Option<Vec<u32>>,
    /// Index of the next sample in the run.
    next: usize,
    /// Written since the last sync.
    unsynced: Vec<PathBuf>,
}

impl FolderFormat {
    /// Opens the folder, new or with `done` samples; pictures behind these are removed.
    pub fn open(folder: &Path, set: &SampleSet, done: usize) -> Result<Self, FileError> {
        let provenance = set.provenance.clone();
        let next = provenance.range.start + done;
        fs::create_dir_all(folder).map_err(FileError::os("create the folder", folder))?;
        let mut kept = 0;
        for entry in fs::read_dir(folder).map_err(FileError::os("list", folder))? {
            let path = entry.map_err(FileError::os("list", folder))?.path();
            if index_of(&path).is_some_and(|index| provenance.range.start <= index && index < next) {
                kept += 1;
            } else {
                fs::remove_file(&path).map_err(FileError::os("remove", &path))?;
            }
        }
        if kept != done {
            return Err(FileError::Unwritable {
                path: folder.to_path_buf(),
                problem: format!(
                    "{kept} pictures are there where its progress.json counts {done}; remove the folder around it"
                ),
            });
        }
        Ok(Self { folder: folder.to_path_buf(), provenance, labels: set.labels.clone(), next, unsynced: Vec::new() })
    }
}

/// The name of a picture.
pub(super) fn name_of(index: usize) -> String {
    format!("{index:06}.png")
}

fn index_of(path: &Path) -> Option<usize> {
    let name = path.file_name()?.to_str()?;
    let index = name.strip_suffix(".png")?.parse().ok()?;
    (name == name_of(index)).then_some(index)
}

/// Whether a file name is one that a run writes.
pub(super) fn is_ours(name: &str) -> bool {
    name == LABELS || name == FILE || index_of(Path::new(name)).is_some()
}

impl Format for FolderFormat {
    fn append(&mut self, images: ImageBatch<'_>) -> Result<(), FileError> {
        let bytes = images.to_bytes();
        for image in bytes.chunks_exact(images.image_len()) {
            let path = self.folder.join(name_of(self.next));
            let origin = self.provenance.image_json(self.next);
            let png = encode_png(image, images.channels, images.width, images.height, Some(&origin));
            let png = png.map_err(|problem| FileError::Unwritable { path: path.clone(), problem })?;
            fs::write(&path, png).map_err(FileError::os("write", &path))?;
            self.unsynced.push(path);
            self.next += 1;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), FileError> {
        sync_files(&self.folder, &self.unsynced)?;
        self.unsynced.clear();
        sync_folder(&self.folder)
    }

    fn complete(mut self: Box<Self>) -> Result<(), FileError> {
        let mut files = vec![(FILE, self.provenance.to_json())];
        if let Some(labels) = &self.labels {
            let mut table = String::from("file,label\n");
            for (index, label) in self.provenance.range.clone().zip(labels) {
                // Writing to a String cannot fail.
                let _ = writeln!(table, "{},{label}", name_of(index));
            }
            files.push((LABELS, table));
        }
        for (name, text) in files {
            let path = self.folder.join(name);
            fs::write(&path, text).map_err(FileError::os("write", &path))?;
            self.unsynced.push(path);
        }
        self.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::partial::Existing;
    use crate::io::sink::open_sink;

    fn set(channels: usize, count: usize, labels: Option<Vec<u32>>) -> SampleSet {
        let settings = serde_json::Map::from_iter([("seed".to_string(), 3.into())]);
        SampleSet { channels, height: 2, width: 1, labels, provenance: Provenance { settings, range: 0..count } }
    }

    #[test]
    fn pictures_and_labels_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out/samples");
        // 300 images, so that both ways of syncing are used by the two rounds.
        for (count, labelled) in [(3, true), (300, false)] {
            let labels = labelled.then(|| vec![5, 0, 1]);
            let byte = |i: usize| (i * 7 % 256) as u8;
            let values: Vec<f32> = (0..count * 6).map(|i| f32::from(byte(i)) / 127.5 - 1.0).collect();
            let mut sink = open_sink(&path, set(3, count, labels), Existing::Refuse).unwrap().unwrap();
            sink.push(ImageBatch::new(&values, 3, 2, 1)).unwrap();
            sink.finish().unwrap();
            for n in [0, 2, count - 1] {
                let image = image::open(path.join(format!("{n:06}.png"))).unwrap();
                assert_eq!(image.color(), image::ColorType::Rgb8);
                assert_eq!((image.width(), image.height()), (1, 2));
                assert_eq!(image.as_bytes(), [0, 2, 4, 1, 3, 5].map(|i| byte(n * 6 + i)));
            }
            assert_eq!(fs::read_dir(&path).unwrap().count(), count + 1 + usize::from(labelled));
            assert_eq!(Provenance::read(&path).unwrap(), Some(set(3, count, None).provenance));
            let file = fs::File::open(path.join("000001.png")).unwrap();
            let reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
            let text = &reader.info().uncompressed_latin1_text[0];
            assert_eq!((text.keyword.as_str(), text.text.as_str()), ("warpdiff", "{\"index\":1,\"seed\":3}"));
            if labelled {
                let table = fs::read_to_string(path.join(LABELS)).unwrap();
                assert_eq!(table, "file,label\n000000.png,5\n000001.png,0\n000002.png,1\n");
            }
        }
        fs::write(path.join("thesis.txt"), "mine").unwrap();
        let open = |path: &Path, channels| open_sink(path, set(channels, 1, None), Existing::Refuse).map(|_| ());
        assert!(matches!(open(&path, 3), Err(FileError::WouldOverwrite { .. })));
        assert!(matches!(open(&folder.path().join("x"), 4), Err(FileError::Unwritable { .. })));
    }
}
