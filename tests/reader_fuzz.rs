//! Every reader on random bytes and on damaged copies of valid files: it must answer, not panic, and not allocate more than a small
//! multiple of what the file could hold.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use warpdiff::data::{self, Dataset, OpenOptions};
use warpdiff::io::{HostTensor, TensorData, TensorFile, WeightSource, safetensors_write};

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, counting live bytes for each thread.
struct Counting;

fn count(bytes: isize) {
    // Threads that are being torn down have no counters any more; they run no reader.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call is passed on to `System` unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `work` had allocated at once.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    work();
    (PEAK.get() - before) as usize
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end.max(1)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// One to four changes of the kinds that break parsers: flipped bits, extreme numbers, cuts, repeats, insertions.
fn damage(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        // Headers are at the front: half of the changes go there.
        let reach = if random.below(2) == 0 { bytes.len().min(64) } else { bytes.len() };
        let at = random.below(reach);
        let (kind, some) = (random.below(7), random.below(9));
        match kind {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            2 => {
                let extreme = [0u8, 0xff, 0x7f, 0x80, b'9', b'"'][random.below(6)];
                let end = (at + some).min(bytes.len());
                bytes[at..end].fill(extreme);
            }
            3 => bytes.truncate(at),
            4 => {
                let end = (at + some).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => {
                bytes.drain(at..(at + some).min(bytes.len()));
            }
            _ => {
                let inserted = random.bytes(some);
                bytes.splice(at..at, inserted);
            }
        }
    }
    bytes
}

/// Runs `read` on damaged copies of `valid` and on random bytes, each as the file `path`.
///
/// The peak of its allocations must stay below `multiple` times the file's length plus 2 MiB (buffers and tables of fixed size).
fn fuzz(path: &Path, valid: &[Vec<u8>], rounds: usize, multiple: usize, read: impl Fn() -> bool) {
    let mut random = Random(0x5EED_0000 + valid.len() as u64);
    for bytes in valid {
        fs::write(path, bytes).unwrap();
        assert!(read(), "the undamaged file is not read");
    }
    let mut refused = 0;
    for round in 0..rounds {
        let original = &valid[random.below(valid.len())];
        let bytes = match round % 8 {
            0 => {
                let kept = random.below(original.len().min(16));
                let length = random.below(600);
                [&original[..kept], &random.bytes(length)].concat()
            }
            1 => original[..random.below(original.len())].to_vec(),
            _ => damage(original, &mut random),
        };
        fs::write(path, &bytes).unwrap();
        let peak = peak_of(|| match catch_unwind(AssertUnwindSafe(&read)) {
            Ok(readable) => refused += usize::from(!readable),
            Err(_) => panic!("panicked in round {round} on {bytes:02x?}"),
        });
        let bound = multiple * bytes.len() + (2 << 20);
        assert!(peak <= bound, "round {round}: {peak} bytes allocated for a file of {}: {bytes:02x?}", bytes.len());
    }
    assert!(refused > rounds / 4, "only {refused} of {rounds} files refused: the damage does not reach the reader");
}

fn read_all(set: Result<Box<dyn Dataset>, data::DataError>) -> bool {
    let Ok(set) = set else { return false };
    let mut out = vec![0; set.image_len()];
    (0..set.len()).all(|index| set.pixels(index, &mut out).is_ok())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn raw_tensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"d":{"dtype":"F64","shape":[2,1],"data_offsets":[0,16]},"h":{"dtype":"F16","shape":[3],"data_offsets":[16,22]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[22,24]},"i":{"dtype":"I32","shape":[],"data_offsets":[24,28]}}"#;
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0x3c; 28]].concat()
}

#[test]
fn safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let weight = HostTensor::f32(&[2, 3], vec![1.0; 6]);
    let step = HostTensor { shape: vec![], data: TensorData::I64(vec![3]) };
    safetensors_write::write(&path, &[("w", weight.view()), ("s", step.view())], &[("format", "pt")]).unwrap();
    let valid = [fs::read(&path).unwrap(), raw_tensors()];
    fuzz(&path, &valid, 2_000, 64, || {
        let Ok(file) = TensorFile::open(&path) else {
            return false;
        };
        file.names().all(|name| file.get(name).is_ok())
    });
}

#[test]
fn shard_index() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("diffusion_pytorch_model-00001-of-00001.safetensors");
    let weight = HostTensor::f32(&[2], vec![1.0; 2]);
    safetensors_write::write(&shard, &[("a.weight", weight.view()), ("a.bias", weight.view())], &[]).unwrap();
    let index = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
    let name = shard.file_name().unwrap().to_str().unwrap();
    let valid = format!(r#"{{"metadata":{{"total_size":16}},"weight_map":{{"a.weight":"{name}","a.bias":"{name}"}}}}"#);
    fuzz(&index, &[valid.into_bytes()], 2_000, 64, || WeightSource::open(folder.path()).is_ok());
}

#[test]
fn idx() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train-images-idx3-ubyte");
    let plain = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 7][..], &[9; 70]].concat();
    let large = [&[0, 0, 8, 3, 0, 0, 0, 100, 0, 0, 0, 50, 0, 0, 0, 70][..], &[0; 350_000]].concat();
    // Zeros pack 1:1000, so the multiple must allow for what a gzip file can hold, doubled by a growing buffer.
    let valid = [plain.clone(), gzip(&plain), gzip(&large)];
    let name = folder.path().to_str().unwrap();
    fuzz(&path, &valid, 4_000, 2100, || read_all(data::open(name, &OpenOptions::default())));
}

#[test]
fn idx_labels() {
    let folder = tempfile::tempdir().unwrap();
    let images = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1][..], &[9; 2]].concat();
    fs::write(folder.path().join("train-images-idx3-ubyte"), images).unwrap();
    let path = folder.path().join("train-labels-idx1-ubyte");
    let labels = vec![0, 0, 8, 1, 0, 0, 0, 2, 3, 4];
    let name = folder.path().to_str().unwrap();
    fuzz(&path, &[labels.clone(), gzip(&labels)], 2_000, 64, || read_all(data::open(name, &OpenOptions::default())));
}

#[test]
fn cifar() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data_batch_1.bin");
    let batch = [vec![7; 3073], vec![2; 3073]].concat();
    fuzz(&path, &[batch], 2_000, 8, || read_all(data::open(path.to_str().unwrap(), &OpenOptions::default())));
}

#[test]
fn pictures() {
    for extension in ["png", "jpg"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a").with_extension(extension);
        let valid: Vec<Vec<u8>> = [(1u32, 1u32), (9, 5), (40, 30)]
            .into_iter()
            .flat_map(|(w, h)| {
                let grey = image::GrayImage::from_fn(w, h, |x, y| image::Luma([((x * 7) ^ (y * 13)) as u8]));
                let rgb = image::RgbImage::from_fn(w, h, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
                grey.save(&path).unwrap();
                let grey = fs::read(&path).unwrap();
                rgb.save(&path).unwrap();
                [grey, fs::read(&path).unwrap()]
            })
            .collect();
        let options = OpenOptions { size: Some((8, 8)), ..OpenOptions::default() };
        let name = folder.path().to_str().unwrap();
        // A picture, its converted copy and the decoder's own buffers, each of up to 2048 bytes for a byte of the file.
        fuzz(&path, &valid, 2_000, 4 * 2048, || read_all(data::open(name, &options)));
    }
}

/// Checksums hide most damage to a PNG's chunks from the decoder behind them; here they are right again.
#[test]
fn png_with_repaired_checksums() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    image::RgbImage::from_fn(13, 11, |x, y| image::Rgb([x as u8, y as u8, 3])).save(&path).unwrap();
    let valid = fs::read(&path).unwrap();
    let mut random = Random(99);
    let name = folder.path().to_str().unwrap();
    for round in 0..4_000 {
        let mut bytes = valid.clone();
        for _ in 0..=random.below(3) {
            let at = 16 + random.below(bytes.len() - 16);
            bytes[at] = random.next() as u8;
        }
        let mut at = 8;
        while at + 12 <= bytes.len() {
            let length = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            let Some(end) = at.checked_add(8 + length).filter(|end| end + 4 <= bytes.len()) else {
                break;
            };
            let crc = crc32fast::hash(&bytes[at + 4..end]);
            bytes[end..end + 4].copy_from_slice(&crc.to_be_bytes());
            at = end + 4;
        }
        fs::write(&path, &bytes).unwrap();
        let peak = peak_of(|| {
            let outcome = catch_unwind(|| read_all(data::open(name, &OpenOptions::default())));
            assert!(outcome.is_ok(), "panicked in round {round} on {bytes:02x?}");
        });
        assert!(peak <= 4 * 2048 * bytes.len() + (2 << 20), "round {round}: {peak} bytes on {bytes:02x?}");
    }
}
