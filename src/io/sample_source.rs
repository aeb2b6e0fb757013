//! Reading samples back, batch by batch, from the formats that hold them one by one.

use std::fs;
use std::path::{Path, PathBuf};

use super::npz_read::{NpyArray, NpyType, NpzFile};
use super::png_folder::name_of;
use super::provenance::Provenance;
use super::sink::OutputKind;
use super::tensor_file::TensorFile;
use super::{FileError, ImageBatch, TensorData};

/// About so many bytes are held at once.
const CHUNK: usize = 4 << 20;

/// The samples of one output, in their order.
pub struct SampleSource {
    path: PathBuf,
    provenance: Provenance,
    /// Channels, height and width.
    shape: [usize; 3],
    labelled: bool,
    read: usize,
    data: Data,
}

enum Data {
    Npz {
        file: NpzFile,
        samples: NpyArray,
    },
    /// All of them: the format is read by tensors.
    Tensors {
        file: TensorFile,
        samples: Vec<f32>,
    },
    Folder,
}

impl SampleSource {
    /// Opens an output of `sample`.
    ///
    /// # Errors
    /// [`FileError`] if it cannot be read, does not say where it comes from, or holds another number of samples than it says.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let bad = |problem: &str| unreadable(path, problem);
        let provenance =
            Provenance::read(path)?.ok_or_else(|| bad("it is not there, or does not say which samples it holds"))?;
        let count = provenance.range.len();
        let (data, extents, labelled) = match OutputKind::of(path)? {
            OutputKind::Npz => {
                let mut file = NpzFile::open(path)?;
                let samples = file.array("arr_0")?.ok_or_else(|| bad("it has no arr_0"))?;
                let &[n, h, w, c] = samples.shape.as_slice() else { return Err(bad("arr_0 is no batch of images")) };
                if samples.dtype != NpyType::U8 {
                    return Err(bad("arr_0 does not hold bytes"));
                }
                let labelled = file.array("arr_1")?.is_some();
                (Data::Npz { file, samples }, [n, c, h, w], labelled)
            }
            OutputKind::Tensors => {
                let file = TensorFile::open(path)?;
                let shape = file.info("samples")?.shape.clone();
                let extents: [usize; 4] =
                    shape.as_slice().try_into().map_err(|_| bad("samples is no batch of images"))?;
                let samples = file.get_f32("samples", &extents)?;
                let labelled = file.info("labels").is_ok();
                (Data::Tensors { file, samples }, extents, labelled)
            }
            OutputKind::Folder => {
                let first = decode(&path.join(name_of(provenance.range.start)))?;
                let extents = [
                    count,
                    usize::from(first.color().channel_count()),
                    first.height() as usize,
                    first.width() as usize,
                ];
                (Data::Folder, extents, path.join("labels.csv").is_file())
            }
            OutputKind::Grid | OutputKind::Animation => {
                return Err(bad("a picture of samples does not hold them one by one"));
            }
        };
        let [n, shape @ ..] = extents;
        if n != count {
            return Err(bad(&format!("it holds {n} samples and says {count}")));
        }
        if shape.contains(&0) {
            return Err(bad("its samples are empty"));
        }
        Ok(Self { path: path.to_path_buf(), provenance, shape, labelled, read: 0, data })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the samples come from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Channels, height and width of a sample.
    pub fn image_shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Whether every sample has a class.
    pub fn labelled(&self) -> bool {
        self.labelled
    }

    /// The class of each sample.
    ///
    /// # Errors
    /// [`FileError`] if they cannot be read or are not one a sample.
    pub fn labels(&mut self) -> Result<Option<Vec<u32>>, FileError> {
        if !self.labelled {
            return Ok(None);
        }
        let count = self.provenance.range.len();
        let bad = |problem: &str| unreadable(&self.path, problem);
        let labels: Option<Vec<u32>> = match &mut self.data {
            Data::Npz { file, .. } => {
                let mut array = file.array("arr_1")?.ok_or_else(|| bad("it has no arr_1"))?;
                if array.dtype != NpyType::I64 || array.shape != [count] {
                    return Err(bad("arr_1 is not one integer a sample"));
                }
                let mut bytes = vec![0; count * 8];
                array.read(&mut bytes)?;
                bytes.as_chunks::<8>().0.iter().map(|b| u32::try_from(i64::from_le_bytes(*b)).ok()).collect()
            }
            Data::Tensors { file, .. } => match file.get("labels")?.data {
                TensorData::I64(labels) => labels.into_iter().map(|label| u32::try_from(label).ok()).collect(),
                _ => None,
            },
            Data::Folder => {
                let table = self.path.join("labels.csv");
                let text = fs::read_to_string(&table).map_err(FileError::os("read", &table))?;
                text.lines().skip(1).map(|line| line.rsplit_once(',')?.1.parse().ok()).collect()
            }
        };
        match labels {
            Some(labels) if labels.len() == count => Ok(Some(labels)),
            _ => Err(bad("its labels are not one class a sample")),
        }
    }

    /// Hands the next samples to `take`; false if there are no more.
    ///
    /// # Errors
    /// [`FileError`] if they cannot be read, and those of `take`.
    pub fn next(&mut self, take: &mut dyn FnMut(ImageBatch<'_>) -> Result<(), FileError>) -> Result<bool, FileError> {
        let [c, h, w] = self.shape;
        let length = c * h * w;
        let count = (CHUNK / length).max(1).min(self.provenance.range.len() - self.read);
        if count == 0 {
            return Ok(false);
        }
        match &mut self.data {
            Data::Npz { samples, .. } => {
                let mut bytes = vec![0; count * length];
                samples.read(&mut bytes)?;
                take(ImageBatch::from_bytes(&bytes, c, h, w))?;
            }
            Data::Tensors { samples, .. } => {
                take(ImageBatch::new(&samples[self.read * length..(self.read + count) * length], c, h, w))?;
            }
            Data::Folder => {
                for at in self.read..self.read + count {
                    let path = self.path.join(name_of(self.provenance.range.start + at));
                    let image = decode(&path)?;
                    if image.as_bytes().len() != length || image.width() as usize != w {
                        return Err(unreadable(&path, "it has another size than the other pictures"));
                    }
                    take(ImageBatch::from_bytes(image.as_bytes(), c, h, w))?;
                }
            }
        }
        self.read += count;
        Ok(true)
    }
}

fn decode(path: &Path) -> Result<image::DynamicImage, FileError> {
    image::open(path).map_err(|error| unreadable(path, &error.to_string()))
}

fn unreadable(path: &Path, problem: &str) -> FileError {
    let remedy = "give the outputs of `sample --shard` as they were written";
    FileError::Unusable { path: path.to_path_buf(), problem: problem.to_string(), remedy }
}
