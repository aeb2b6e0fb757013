//! Samples as a folder of PNGs: `000000.png`, `000001.png`, ... and, if labelled, `labels.csv`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::atomic_folder::{AtomicFolder, Replace};
use super::canvas::encode_png;
use super::pixels::check_viewable;
use super::sink::{Ledger, SampleShape, SampleSink};
use super::{FileError, ImageBatch};

const LABELS: &str = "labels.csv";

/// Writes a PNG for each sample; the folder appears when all are there. It replaces only a folder that holds nothing else.
#[derive(Debug)]
pub struct PngFolderSink {
    folder: AtomicFolder,
    ledger: Ledger,
}

impl PngFolderSink {
    /// Starts the folder at `path`.
    ///
    /// # Errors
    /// [`FileError::Unwritable`] unless there are 1 or 3 channels, [`FileError::WouldOverwrite`], [`FileError::Os`].
    pub fn create(path: &Path, shape: SampleShape) -> Result<Self, FileError> {
        check_viewable(path, shape.channels)?;
        let ours = |name: &str| name == LABELS || is_sample(name);
        let folder = AtomicFolder::create(path, Replace::IfOnly(ours))?;
        Ok(Self { folder, ledger: Ledger::new(path, shape) })
    }
}

/// Whether a file name is six or more digits and `.png`.
fn is_sample(name: &str) -> bool {
    name.strip_suffix(".png").is_some_and(|stem| stem.len() >= 6 && stem.bytes().all(|byte| byte.is_ascii_digit()))
}

impl PngFolderSink {
    fn write_pictures(&self, images: ImageBatch<'_>, first: usize) -> Result<(), FileError> {
        let bytes = images.to_bytes();
        for (position, image) in bytes.chunks_exact(images.image_len()).enumerate() {
            let png = encode_png(image, images.channels, images.width, images.height)
                .map_err(|problem| self.ledger.unwritable(problem))?;
            let path = self.folder.path().join(format!("{:06}.png", first + position));
            fs::write(&path, png).map_err(FileError::os("write", &path))?;
        }
        Ok(())
    }
}

impl SampleSink for PngFolderSink {
    fn push(&mut self, images: ImageBatch<'_>, labels: Option<&[u32]>) -> Result<(), FileError> {
        let first = self.ledger.written;
        self.ledger.accept(&images, labels)?;
        let result = self.write_pictures(images, first);
        self.ledger.record(result)
    }

    fn finish(self: Box<Self>) -> Result<(), FileError> {
        self.ledger.check_complete()?;
        if self.ledger.shape.labelled {
            let mut table = String::from("file,label\n");
            for (index, label) in self.ledger.labels.iter().enumerate() {
                // Writing to a String cannot fail.
                let _ = writeln!(table, "{index:06}.png,{label}");
            }
            let path = self.folder.path().join(LABELS);
            fs::write(&path, table).map_err(FileError::os("write", &path))?;
        }
        self.folder.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_and_labels_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out/samples");
        // 300 images, so that both ways of syncing are used by the two rounds.
        for (count, labelled) in [(3, true), (300, false)] {
            let shape = SampleShape { count, channels: 3, height: 2, width: 1, labelled };
            let byte = |i: usize| (i * 7 % 256) as u8;
            let values: Vec<f32> = (0..count * 6).map(|i| f32::from(byte(i)) / 127.5 - 1.0).collect();
            let mut sink = PngFolderSink::create(&path, shape).unwrap();
            sink.push(ImageBatch::new(&values, 3, 2, 1), labelled.then_some(&[5, 0, 1])).unwrap();
            Box::new(sink).finish().unwrap();
            for n in [0, 2, count - 1] {
                let image = image::open(path.join(format!("{n:06}.png"))).unwrap();
                assert_eq!(image.color(), image::ColorType::Rgb8);
                assert_eq!((image.width(), image.height()), (1, 2));
                assert_eq!(image.as_bytes(), [0, 2, 4, 1, 3, 5].map(|i| byte(n * 6 + i)));
            }
            assert_eq!(fs::read_dir(&path).unwrap().count(), count + usize::from(labelled));
            if labelled {
                let table = fs::read_to_string(path.join(LABELS)).unwrap();
                assert_eq!(table, "file,label\n000000.png,5\n000001.png,0\n000002.png,1\n");
            }
        }
        fs::write(path.join("thesis.txt"), "mine").unwrap();
        let shape = SampleShape { count: 1, channels: 3, height: 2, width: 1, labelled: false };
        assert!(matches!(PngFolderSink::create(&path, shape), Err(FileError::WouldOverwrite { .. })));
        let four = SampleShape { channels: 4, ..shape };
        assert!(matches!(PngFolderSink::create(&folder.path().join("x"), four), Err(FileError::Unwritable { .. })));
    }
}
