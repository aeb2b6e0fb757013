//! Every reader on random bytes and on damaged copies of valid files: it must answer, not panic, and not allocate more than a small
//! multiple of what the file could hold.
//!
//! `WARPDIFF_FUZZ_SECONDS=600 cargo test --test reader_fuzz -- pickle --nocapture` goes on for so long, from another seed each time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use warpdiff::data::{self, Dataset, OpenOptions};
use warpdiff::io::npz_read::NpzFile;
use warpdiff::io::{HostTensor, TensorData, TensorFile, WeightSource, safetensors_write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

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

/// How long a test goes on: so many rounds, or the time that `WARPDIFF_FUZZ_SECONDS` says.
struct Rounds {
    count: usize,
    until: Option<Instant>,
}

impl Rounds {
    /// With the generator of what is to be tried: the same one in every run, unless the time is given.
    fn new(count: usize, seed: u64) -> (Self, Random) {
        let seconds = std::env::var("WARPDIFF_FUZZ_SECONDS").ok().map(|s| s.parse().unwrap());
        let until = seconds.map(|s| Instant::now() + Duration::from_secs(s));
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = if until.is_some() { now() | 1 } else { seed };
        (Self { count, until }, Random(seed))
    }

    fn go_on(&self, round: usize) -> bool {
        match self.until {
            None => round < self.count,
            Some(until) => !round.is_multiple_of(256) || Instant::now() < until,
        }
    }
}

/// Runs `read` on damaged copies of `valid` and on random bytes, each as the file `path`.
///
/// The peak of its allocations must stay below `multiple` times the file's length plus 2 MiB (buffers and tables of fixed size).
fn fuzz(path: &Path, valid: &[Vec<u8>], rounds: usize, multiple: usize, read: impl Fn() -> bool) {
    fuzz_inside(path, valid, rounds, multiple, <[u8]>::to_vec, read);
}

/// As [`fuzz`], with `wrap` between the damaged bytes and the file.
fn fuzz_inside(
    path: &Path,
    valid: &[Vec<u8>],
    rounds: usize,
    multiple: usize,
    wrap: impl Fn(&[u8]) -> Vec<u8>,
    read: impl Fn() -> bool,
) {
    let (rounds, mut random) = Rounds::new(rounds, 0x5EED_0000 + valid.len() as u64);
    for bytes in valid {
        fs::write(path, wrap(bytes)).unwrap();
        assert!(read(), "the undamaged file is not read");
    }
    let (mut round, mut refused) = (0, 0);
    while rounds.go_on(round) {
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
        refused += usize::from(!answers(path, &wrap(&bytes), multiple, round, &read));
        round += 1;
    }
    println!("{round} files, {refused} refused");
    assert!(refused > round / 4, "only {refused} of {round} files refused: the damage does not reach the reader");
}

/// Whether `read` takes the file; it must not panic, and not allocate more than the file justifies.
fn answers(path: &Path, bytes: &[u8], multiple: usize, round: usize, read: impl Fn() -> bool) -> bool {
    fs::write(path, bytes).unwrap();
    let mut readable = false;
    let begin = Instant::now();
    let peak = peak_of(|| match catch_unwind(AssertUnwindSafe(&read)) {
        Ok(answer) => readable = answer,
        Err(_) => panic!("panicked in round {round} on {bytes:02x?}"),
    });
    let bound = multiple * bytes.len() + (2 << 20);
    assert!(peak <= bound, "round {round}: {peak} bytes allocated for a file of {}: {bytes:02x?}", bytes.len());
    assert!(begin.elapsed() < Duration::from_secs(20), "round {round} took {:?}: {bytes:02x?}", begin.elapsed());
    readable
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

fn checkpoint(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints").join(name)).unwrap()
}

/// Opens a checkpoint and reads every tensor.
fn read_checkpoint(path: &Path) -> bool {
    let Ok(file) = TensorFile::open(path) else { return false };
    file.names().all(|name| file.get(name).is_ok())
}

/// A view may repeat elements, up to 64 for a byte of the file, each of 8 bytes here.
const REPEATS: usize = 2 * 64 * 8;

#[test]
fn pickle_in_a_zip_archive() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pt");
    let valid = ["zip2.pt", "zip5.pt", "zip_more.pt"].map(checkpoint);
    fuzz(&path, &valid, 2_000, REPEATS, || read_checkpoint(&path));
}

#[test]
fn pickle_of_the_legacy_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.bin");
    let valid = ["legacy2.pt", "legacy4.pt", "legacy_more.pt"].map(checkpoint);
    fuzz(&path, &valid, 2_000, REPEATS, || read_checkpoint(&path));
}

/// An archive with this pickle and the storages of `other`, its checksums right.
fn archive(pickle: &[u8], other: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let pickle = ("a/data.pkl".to_string(), pickle.to_vec());
    for (name, bytes) in other.iter().chain([&pickle]) {
        archive.start_file(name.as_str(), options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// The pickle of a checkpoint, and its storages as records below `a/`.
fn taken_apart(name: &str) -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(checkpoint(name))).unwrap();
    let (mut pickle, mut storages) = (Vec::new(), Vec::new());
    for index in 0..archive.len() {
        let mut record = archive.by_index(index).unwrap();
        let name = record.name().unwrap().into_owned();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut record, &mut bytes).unwrap();
        match name.split_once('/').unwrap().1 {
            "data.pkl" => pickle = bytes,
            storage if storage.starts_with("data/") => storages.push((format!("a/{storage}"), bytes)),
            _ => {}
        }
    }
    (pickle, storages)
}

/// The archive's checksum hides damage to the pickle from the machine that runs it; here it is right again.
#[test]
fn pickle_with_a_repaired_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pt");
    let (pickle, storages) = taken_apart("zip2.pt");
    let (more, _) = taken_apart("zip_more.pt");
    let (frames, _) = taken_apart("zip5.pt");
    let wrap = |pickle: &[u8]| archive(pickle, &storages);
    fuzz_inside(&path, &[pickle, more, frames], 2_000, REPEATS, wrap, || read_checkpoint(&path));
}

/// Programs of instructions in random order: many more of them do something than of random bytes.
#[test]
fn pickle_of_random_instructions() {
    let pieces: Vec<&[u8]> = [
        &b"("[..],
        b"0",
        b"1",
        b"2",
        b"N",
        b"\x88",
        b"\x89",
        b"K\0",
        b"K\x02",
        b"K\x07",
        b"M\xff\xff",
        b"J\xff\xff\xff\xff",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x8a\x08\0\0\0\0\0\0\0\x40",
        b"\x8a\x0a\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a",
        b"G\0\0\0\0\0\0\0\0",
        b"X\x01\0\0\0a",
        b"\x8c\x07storage",
        b"X\x01\0\0\x000",
        b"X\x03\0\0\0cpu",
        b")",
        b"\x85",
        b"\x86",
        b"\x87",
        b"t",
        b"]",
        b"l",
        b"a",
        b"e",
        b"}",
        b"d",
        b"s",
        b"u",
        b"\x8f",
        b"\x90",
        b"\x91",
        b"q\0",
        b"q\x01",
        b"h\0",
        b"h\x01",
        b"\x94",
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch\nLongStorage\n",
        b"ctorch\nSize\n",
        b"c__builtin__\nset\n",
        b"\x93",
        b"R",
        b"b",
        b"Q",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ",
        b"ctorch._utils\n_rebuild_tensor_v2\n(h\0",
        b"K\0K\x02\x85K\x01\x85\x89}tR",
        b"K\x02K\x01\x86",
        b"K\x02K\0\x86",
    ]
    .to_vec();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pt");
    let storages = [("a/data/0".to_string(), vec![0x3f; 24])];
    let (rounds, mut random) = Rounds::new(4_000, 0x5EED);
    let (mut round, mut taken) = (0, 0);
    while rounds.go_on(round) {
        let mut pickle = if round % 2 == 0 { b"\x80\x02}X\x01\0\0\0a".to_vec() } else { Vec::new() };
        for _ in 0..random.below(40) {
            pickle.extend(pieces[random.below(pieces.len())]);
        }
        pickle.extend(if round % 2 == 0 { &b"s."[..] } else { b"." });
        taken += usize::from(answers(&path, &archive(&pickle, &storages), REPEATS, round, || read_checkpoint(&path)));
        round += 1;
    }
    println!("{round} programs, {taken} read");
    assert!(taken > 0, "no program makes anything");
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

/// Decoders hold the rows that complete a square of pixels; a claim that counts them cannot be of such a short file.
#[test]
fn jpeg_of_a_wide_strip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jpg");
    image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([x as u8, y as u8, 3])).save(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    bytes[frame + 5..frame + 7].copy_from_slice(&5u16.to_be_bytes());
    bytes[frame + 7..frame + 9].copy_from_slice(&46_857u16.to_be_bytes());
    let options = OpenOptions { size: Some((8, 8)), ..OpenOptions::default() };
    let name = folder.path().to_str().unwrap();
    assert!(!answers(&path, &bytes, 4 * 2048, 0, || read_all(data::open(name, &options))));
}

/// An array file: its header, padded to 64 bytes as NumPy does, and its elements.
fn npy(descr: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), elements].concat()
}

#[test]
fn npz() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("samples.npz");
    let archive = |members: &[(&str, Vec<u8>)]| {
        let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, bytes) in members {
            let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
            writer.start_file(*name, stored).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap().into_inner()
    };
    let images = npy("|u1", "(3, 2, 5, 3)", &[7; 90]);
    let labels = npy("<i8", "(3,)", &[1; 24]);
    let valid = [
        archive(&[("arr_0.npy", images.clone())]),
        archive(&[("arr_0.npy", images), ("arr_1.npy", labels), ("warpdiff.json", br#"{"seed": 1}"#.to_vec())]),
        archive(&[("arr_0.npy", npy("<f4", "()", &[0; 4]))]),
    ];
    fuzz(&path, &valid, 4_000, 64, || {
        let Ok(mut file) = NpzFile::open(&path) else { return false };
        let mut text = file.text("warpdiff.json").is_ok();
        for name in ["arr_0", "arr_1"] {
            match file.array(name) {
                Ok(Some(mut array)) => {
                    let elements: usize = array.shape.iter().product();
                    text &= array.read(&mut vec![0; elements * array.dtype.width()]).is_ok();
                }
                Ok(None) => text &= name == "arr_1",
                Err(_) => text = false,
            }
        }
        text
    });
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
