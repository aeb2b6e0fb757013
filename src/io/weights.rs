//! Finding the weights in a model folder, in the layouts that diffusers writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use super::safetensors::json_offset;
use super::tensor_file::missing_tensor;
use super::{FileError, TensorFile, TensorInfo};

const STEM: &str = "diffusion_pytorch_model";
/// A list of names; the largest published models need a few hundred KiB.
const MAX_INDEX: u64 = 64 << 20;

/// The weights of a model, in one file or several: names and shapes at once, elements when asked for.
#[derive(Debug)]
pub struct WeightSource {
    path: PathBuf,
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, Entry>,
    /// What aliases are called in the files' own convention, also where the file lacks them.
    own_names: BTreeMap<String, String>,
}

/// Where a tensor is.
#[derive(Clone, Debug)]
struct Entry {
    /// Position in [`WeightSource::files`].
    file: usize,
    /// Its name in the file.
    name: String,
    /// The rows that are meant, with what the file says of a tensor of these alone; `None` for all of them.
    rows: Option<(RowBlocks, TensorInfo)>,
}

impl Entry {
    fn whole(file: usize, name: &str) -> Self {
        Self { file, name: name.to_string(), rows: None }
    }
}

/// A tensor of a file under another name, or some of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The name it is asked for by.
    pub name: String,
    /// The name in the file.
    pub file_name: String,
    /// Which rows, unless all.
    pub rows: Option<RowBlocks>,
}

/// Equally long blocks of rows at equal distances: `first + k stride .. first + k stride + len` for every k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowBlocks {
    /// First row of the first block.
    pub first: usize,
    /// Rows of a block.
    pub len: usize,
    /// Rows from the beginning of a block to that of the next; all rows together are a multiple of it.
    pub stride: usize,
}

impl RowBlocks {
    /// How many of `rows` rows these are, or `None` if they do not fit.
    fn count(&self, rows: usize) -> Option<usize> {
        let fits = self.stride > 0 && self.first + self.len <= self.stride && rows.is_multiple_of(self.stride);
        fits.then(|| rows / self.stride * self.len)
    }

    fn gather(&self, rows: usize, data: &[f32]) -> Vec<f32> {
        let row = data.len() / rows.max(1);
        let block = |block: &[f32]| block[self.first * row..][..self.len * row].to_vec();
        data.chunks_exact(self.stride * row).flat_map(block).collect()
    }
}

impl WeightSource {
    /// Opens the weights at `path`: a file, an index of shards, or a folder that holds them itself or in `unet/`.
    ///
    /// In a folder, `diffusion_pytorch_model.safetensors.index.json` (sharded) goes before `diffusion_pytorch_model.safetensors`, and
    /// that before the half-precision variant `diffusion_pytorch_model.fp16.safetensors`; `.bin` files come last, in the same order.
    ///
    /// # Errors
    /// [`FileError::NoWeights`]; [`FileError::MissingShard`], [`FileError::ShardEscapes`] and [`FileError::ShardLacksTensor`] for a bad
    /// index; and those of [`TensorFile::open`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        if path.is_file() {
            return match path.extension().and_then(|e| e.to_str()) {
                Some("json") => Self::sharded(path),
                _ => Self::single(path),
            };
        }
        fs::read_dir(path).map_err(FileError::os("open the model folder", path))?;
        for extension in ["safetensors", "bin"] {
            for folder in [path.to_path_buf(), path.join("unet")] {
                let index = folder.join(format!("{STEM}.{extension}.index.json"));
                if index.is_file() {
                    return Self::sharded(&index);
                }
                for variant in ["", ".fp16"] {
                    let file = folder.join(format!("{STEM}{variant}.{extension}"));
                    if file.is_file() {
                        return Self::single(&file);
                    }
                }
            }
        }
        Err(FileError::NoWeights {
            folder: path.to_path_buf(),
            looked_for: format!("{STEM}.safetensors, {STEM}.bin and their .index.json, here and in unet/"),
        })
    }

    fn single(path: &Path) -> Result<Self, FileError> {
        let file = TensorFile::open(path)?;
        let tensors = file.names().map(|name| (name.to_string(), Entry::whole(0, name))).collect();
        Ok(Self { path: path.to_path_buf(), files: vec![file], tensors, own_names: BTreeMap::new() })
    }

    fn sharded(index: &Path) -> Result<Self, FileError> {
        let folder = super::atomic::parent_of(index);
        let mut positions: BTreeMap<String, usize> = BTreeMap::new();
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for (tensor, shard) in read_index(index)? {
            let position = match positions.get(&shard) {
                Some(&position) => position,
                None => {
                    files.push(TensorFile::open(&shard_path(index, folder, &shard)?)?);
                    positions.insert(shard.clone(), files.len() - 1);
                    files.len() - 1
                }
            };
            let held = files.get(position).is_some_and(|file| file.info(&tensor).is_ok());
            if !held {
                return Err(FileError::ShardLacksTensor { index: index.to_path_buf(), tensor, shard });
            }
            let entry = Entry::whole(position, &tensor);
            tensors.insert(tensor, entry);
        }
        Ok(Self { path: index.to_path_buf(), files, tensors, own_names: BTreeMap::new() })
    }

    /// Lets tensors be asked for under other names. A tensor that no alias means keeps its name.
    pub fn rename(&mut self, aliases: &[Alias]) {
        let old = std::mem::take(&mut self.tensors);
        for alias in aliases {
            self.own_names.insert(alias.name.clone(), alias.file_name.clone());
            let Some(found) = old.get(&alias.file_name) else { continue };
            let mut entry = Entry::whole(found.file, &found.name);
            if let (Some(rows), Ok(info)) = (alias.rows, self.files[found.file].info(&found.name))
                && let Some((&all, rest)) = info.shape.split_first()
                && let Some(count) = rows.count(all)
            {
                let shape = std::iter::once(count).chain(rest.iter().copied()).collect();
                entry.rows = Some((rows, TensorInfo { shape, ..info.clone() }));
            }
            self.tensors.insert(alias.name.clone(), entry);
        }
        let used: BTreeSet<&str> = aliases.iter().map(|alias| alias.file_name.as_str()).collect();
        self.tensors.extend(old.into_iter().filter(|(name, _)| !used.contains(name.as_str())));
    }

    /// The name of a tensor in the convention of the file, whether or not the file has it.
    pub fn own_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.own_names.get(name).map_or(name, String::as_str)
    }

    /// Forgets every tensor of these names.
    pub fn leave_out(&mut self, names: &[String]) {
        for name in names {
            self.tensors.remove(name);
        }
    }

    /// The file that was found: a safetensors file or an index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(TensorFile::path)
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape and type of a tensor.
    ///
    /// # Errors
    /// [`FileError::MissingTensor`].
    pub fn info(&self, name: &str) -> Result<&TensorInfo, FileError> {
        let entry = self.entry(name)?;
        match &entry.rows {
            Some((_, info)) => Ok(info),
            None => self.files[entry.file].info(&entry.name),
        }
    }

    /// Reads a float tensor of a known shape with finite elements; see [`TensorFile::get_f32`].
    ///
    /// # Errors
    /// Those of [`TensorFile::get_f32`].
    pub fn get_f32(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, FileError> {
        let entry = self.entry(name)?;
        let file = &self.files[entry.file];
        let Some((rows, info)) = &entry.rows else { return file.get_f32(&entry.name, expected) };
        if info.shape != expected {
            return Err(FileError::Shape {
                path: file.path().to_path_buf(),
                tensor: entry.name.clone(),
                expected: expected.to_vec(),
                actual: info.shape.clone(),
            });
        }
        let whole = file.info(&entry.name)?.shape.clone();
        Ok(rows.gather(whole[0], &file.get_f32(&entry.name, &whole)?))
    }

    fn entry(&self, name: &str) -> Result<&Entry, FileError> {
        self.tensors.get(name).ok_or_else(|| missing_tensor(&self.path, name, self.names()))
    }
}

/// Reads `weight_map` (tensor name to shard file name) of an index.
fn read_index(index: &Path) -> Result<BTreeMap<String, String>, FileError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let malformed = |offset, problem| FileError::Malformed {
        path: index.to_path_buf(),
        offset,
        problem,
        remedy: "an index has the form {\"weight_map\": {tensor: shard file}}; download it again",
    };
    let mut text = Vec::new();
    File::open(index)
        .and_then(|file| file.take(MAX_INDEX + 1).read_to_end(&mut text))
        .map_err(FileError::os("read", index))?;
    if text.len() as u64 > MAX_INDEX {
        return Err(malformed(MAX_INDEX, format!("the index is longer than {MAX_INDEX} bytes")));
    }
    let parsed: Index =
        serde_json::from_slice(&text).map_err(|error| malformed(json_offset(&text, &error), error.to_string()))?;
    Ok(parsed.weight_map)
}

fn shard_path(index: &Path, folder: &Path, shard: &str) -> Result<PathBuf, FileError> {
    let mut components = Path::new(shard).components();
    let plain = matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(name)), None) if name == shard
    );
    if !plain || shard.contains(['\\', ':', '\0']) {
        return Err(FileError::ShardEscapes { index: index.to_path_buf(), shard: shard.to_string() });
    }
    let path = folder.join(shard);
    if path.is_file() {
        Ok(path)
    } else {
        Err(FileError::MissingShard { index: index.to_path_buf(), shard: shard.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{TensorView, safetensors_write};

    const ONE: &str = "diffusion_pytorch_model-00001-of-00002.safetensors";
    const TWO: &str = "diffusion_pytorch_model-00002-of-00002.safetensors";

    fn save(path: &Path, name: &str, data: &[f32]) {
        safetensors_write::write(path, &[(name, TensorView::f32(&[data.len()], data))], &[]).unwrap();
    }

    fn sharded(folder: &Path, map: &str) -> PathBuf {
        let unet = folder.join("unet");
        save(&unet.join(ONE), "a", &[1.0]);
        save(&unet.join(TWO), "b", &[2.0, 3.0]);
        let index = unet.join(format!("{STEM}.safetensors.index.json"));
        fs::write(&index, format!(r#"{{"metadata":{{"total_size":12}},"weight_map":{map}}}"#)).unwrap();
        unet
    }

    #[test]
    fn flat_nested_and_direct() {
        let folder = tempfile::tempdir().unwrap();
        let nested = folder.path().join(format!("unet/{STEM}.fp16.safetensors"));
        save(&nested, "a", &[1.0]);
        assert_eq!(WeightSource::open(folder.path()).unwrap().get_f32("a", &[1]).unwrap(), [1.0]);
        assert_eq!(WeightSource::open(&nested).unwrap().path(), nested);
        save(&folder.path().join(format!("{STEM}.safetensors")), "a", &[2.0]);
        assert_eq!(WeightSource::open(folder.path()).unwrap().get_f32("a", &[1]).unwrap(), [2.0]);
    }

    #[test]
    fn shards_are_joined() {
        let folder = tempfile::tempdir().unwrap();
        sharded(folder.path(), &format!(r#"{{"a":"{ONE}","b":"{TWO}"}}"#));
        let source = WeightSource::open(folder.path()).unwrap();
        assert_eq!(source.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(source.files().count(), 2);
        assert!(WeightSource::open(source.path()).is_ok());
        assert_eq!(source.info("b").unwrap().shape, [2]);
        assert_eq!(source.get_f32("b", &[2]).unwrap(), [2.0, 3.0]);
        assert!(matches!(source.info("c"), Err(FileError::MissingTensor { count: 2, .. })));
    }

    #[test]
    fn a_bad_index_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        sharded(folder.path(), &format!(r#"{{"a":"{ONE}","b":"{ONE}"}}"#));
        match WeightSource::open(folder.path()) {
            Err(FileError::ShardLacksTensor { tensor, shard, .. }) => {
                assert_eq!((tensor.as_str(), shard.as_str()), ("b", ONE))
            }
            other => panic!("{other:?}"),
        }
        sharded(folder.path(), r#"{"a":"gone.safetensors"}"#);
        assert!(matches!(WeightSource::open(folder.path()), Err(FileError::MissingShard { .. })));
        fs::write(folder.path().join("outside.safetensors"), b"").unwrap();
        for escape in
            ["../outside.safetensors", "..", ".", "", "/etc/passwd", "x/../a", "./a", "a/", "..\\\\a", "C:a", "\\u0000"]
        {
            sharded(folder.path(), &format!(r#"{{"a":"{escape}"}}"#));
            assert!(matches!(WeightSource::open(folder.path()), Err(FileError::ShardEscapes { .. })), "{escape}");
        }
        for bad in ["3", r#"{"a":3}"#, "[", r#"{"a":null}"#] {
            sharded(folder.path(), bad);
            assert!(
                matches!(WeightSource::open(folder.path()), Err(FileError::Malformed { offset: 1.., .. })),
                "{bad}"
            );
        }
    }

    /// Six rows of two columns: as two heads of q, k and v, and as three projections.
    #[test]
    fn aliases_rename_tensors_and_take_their_rows() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        let data: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let views = [("qkv", TensorView::f32(&[6, 2], &data)), ("b", TensorView::f32(&[1], &data[..1]))];
        safetensors_write::write(&file, &views, &[]).unwrap();
        let alias = |name: &str, file_name: &str, rows| Alias { name: name.into(), file_name: file_name.into(), rows };
        let rows = |first, len, stride| Some(RowBlocks { first, len, stride });
        let mut source = WeightSource::open(&file).unwrap();
        source.rename(&[
            alias("k of heads", "qkv", rows(1, 1, 3)),
            alias("k", "qkv", rows(2, 2, 6)),
            alias("misfit", "qkv", rows(0, 4, 4)),
            alias("absent", "nothing", None),
        ]);
        assert_eq!(source.names().collect::<Vec<_>>(), ["b", "k", "k of heads", "misfit"]);
        assert_eq!(source.get_f32("k of heads", &[2, 2]).unwrap(), [2.0, 3.0, 8.0, 9.0]);
        assert_eq!(source.get_f32("k", &[2, 2]).unwrap(), [4.0, 5.0, 6.0, 7.0]);
        // Rows that do not fit leave the tensor whole, for its shape to be refused.
        assert_eq!(source.info("misfit").unwrap().shape, [6, 2]);
        assert!(matches!(source.get_f32("k", &[6, 2]), Err(FileError::Shape { .. })));
        assert_eq!((source.own_name("absent"), source.own_name("b")), ("nothing", "b"));
    }

    #[test]
    fn safetensors_go_before_bin_and_nothing_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let text = WeightSource::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("diffusion_pytorch_model.safetensors"), "{text}");
        let bin = folder.path().join(format!("{STEM}.bin"));
        fs::write(&bin, b"neither").unwrap();
        for path in [folder.path(), bin.as_path()] {
            let text = WeightSource::open(path).unwrap_err().to_string();
            assert!(text.contains("torch.save") && text.contains(".bin"), "{text}");
        }
        save(&folder.path().join(format!("unet/{STEM}.safetensors")), "a", &[1.0]);
        assert_eq!(WeightSource::open(folder.path()).unwrap().names().collect::<Vec<_>>(), ["a"]);
    }

    /// What a file is called says nothing about what it is.
    #[test]
    fn the_format_is_told_by_content() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join(format!("{STEM}.bin"));
        save(&bin, "a", &[1.0]);
        assert_eq!(WeightSource::open(folder.path()).unwrap().get_f32("a", &[1]).unwrap(), [1.0]);
        for (head, word) in
            [(&b"version https://git-lfs.github.com/spec/v1\n"[..], "git lfs pull"), (b"\n<!DOCTYPE html>", "web page")]
        {
            fs::write(&bin, head).unwrap();
            let text = WeightSource::open(&bin).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
        let mut tar = vec![0; 1024];
        tar[257..262].copy_from_slice(b"ustar");
        fs::write(&bin, tar).unwrap();
        assert!(WeightSource::open(&bin).unwrap_err().to_string().contains("tar archive"));
    }
}
