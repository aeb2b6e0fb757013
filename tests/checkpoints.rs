//! PyTorch checkpoints: read to the last bit, in every form that torch.save has; whatever is more than tensors is refused.
//!
//! The files were written by `tests/data/make_checkpoints.py`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;
use warpdiff::io::{FileError, TensorData, TensorFile, WeightSource};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints").join(name)
}

#[track_caller]
fn refused(path: &Path, words: &[&str]) -> FileError {
    let error = TensorFile::open(path).expect_err("the file is read");
    let text = error.to_string();
    for word in words.iter().chain([&path.file_name().unwrap().to_str().unwrap()]) {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    error
}

/// The tensors that the script wrote, and their values.
fn holds_what_was_written(name: &str) {
    let file = TensorFile::open(&file(name)).unwrap();
    let expected: Value = serde_json::from_slice(&fs::read(self::file("expected.json")).unwrap()).unwrap();
    let expected = expected.as_object().unwrap();
    assert_eq!(file.names().count(), expected.len(), "{name}");
    for (tensor, expected) in expected {
        let found = file.get(tensor).unwrap();
        let shape: Vec<usize> = serde_json::from_value(expected["shape"].clone()).unwrap();
        let values: Vec<f64> = serde_json::from_value(expected["values"].clone()).unwrap();
        let found_values: Vec<f64> = match &found.data {
            TensorData::F32(x) => x.iter().map(|&v| f64::from(v)).collect(),
            TensorData::I64(x) => x.iter().map(|&v| v as f64).collect(),
            TensorData::U8(x) => x.iter().map(|&v| f64::from(v)).collect(),
        };
        let values: Vec<f64> = match expected["dtype"].as_str().unwrap() {
            "float64" => values.iter().map(|&v| f64::from(v as f32)).collect(),
            _ => values,
        };
        assert_eq!((found.shape, found_values), (shape, values), "{name}: {tensor}");
    }
}

#[test]
fn every_form_of_torch_save_is_read() {
    for name in ["zip2.pt", "zip4.pt", "zip5.pt", "legacy2.pt", "legacy4.pt", "legacy5.pt"] {
        holds_what_was_written(name);
    }
}

#[test]
fn values_beside_the_tensors_do_not_disturb() {
    for name in ["zip_more.pt", "legacy_more.pt"] {
        holds_what_was_written(name);
    }
}

#[test]
fn types_without_a_meaning_here_are_refused_when_they_are_read() {
    let file = TensorFile::open(&file("bool.pt")).unwrap();
    assert_eq!(file.info("mask").unwrap().shape, [2]);
    assert!(matches!(file.get("mask"), Err(FileError::Dtype { dtype, .. }) if dtype == "BOOL"));
}

#[test]
fn whatever_wants_to_run_code_is_refused_by_name() {
    for (name, global) in [
        ("bad_system.pt", "posix.system"),
        ("bad_stack_global.pt", "posix.system"),
        ("bad_legacy_eval.pt", "__builtin__.eval"),
        ("bad_numpy.pt", "numpy"),
        ("bad_object.pt", "__main__.Attributes"),
        ("bad_subclass.pt", "__main__.Stateful"),
    ] {
        let error =
            refused(&file(name), &[global, "wants to run code", "convert it to safetensors with a tool you trust"]);
        assert!(matches!(error, FileError::Forbidden { .. }), "{error}");
    }
}

#[test]
fn what_is_no_state_dict_is_refused_with_what_it_is() {
    refused(&file("groups.pt"), &["groups: model, ema", "state dict"]);
    refused(&file("bad_torchscript.pt"), &["TorchScript"]);
}

/// An archive as torch.save writes them, of records that the test chooses.
fn archive(folder: &Path, records: &[(&str, &[u8])]) -> PathBuf {
    let path = folder.join("w.pt");
    let mut archive = ZipWriter::new(fs::File::create(&path).unwrap());
    for (name, bytes) in records {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        archive.start_file(format!("any/{name}"), options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
    path
}

/// A pickle of `{"a": tensor}` with a storage of `len` floats.
fn pickle(len: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let tuple = |values: &[u8]| {
        let mut bytes = b"(".to_vec();
        values.iter().for_each(|value| bytes.extend([b'K', *value]));
        bytes.push(b't');
        bytes
    };
    [
        &b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n("[..],
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK",
        &[len],
        b"tQK",
        &[offset],
        &tuple(shape),
        &tuple(strides),
        b"\x89}tRs.",
    ]
    .concat()
}

#[test]
fn views_that_leave_their_storage_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let make = |pickle: &[u8]| archive(folder.path(), &[("data.pkl", pickle), ("data/0", &bytes)]);

    let file = TensorFile::open(&make(&pickle(6, 1, &[2, 2], &[1, 3]))).unwrap();
    assert_eq!(file.get_f32("a", &[2, 2]).unwrap(), [1.0, 4.0, 2.0, 5.0]);
    for (offset, shape, strides) in [
        (2, &[2u8, 2][..], &[1u8, 3][..]),
        (0, &[7], &[1]),
        (6, &[1], &[1]),
        (0, &[2], &[6]),
        (0, &[2, 2, 2, 2], &[2; 4]),
    ] {
        refused(&make(&pickle(6, offset, shape, strides)), &["\"a\"", "storage 0", "lead out"]);
    }
    refused(&make(&pickle(7, 0, &[7], &[1])), &["\"a\"", "data/0", "24 bytes", "7 elements"]);
    // 200 to the fifth elements, all of them the first one.
    refused(&make(&pickle(6, 0, &[200; 5], &[0; 5])), &["\"a\"", "far more than the file holds"]);
    refused(&make(&pickle(6, 0, &[255; 9], &[0; 9])), &["\"a\"", "overflow"]);
    refused(&make(&pickle(6, 0, &[2, 3], &[1])), &["equally long"]);
    let gone = archive(folder.path(), &[("data.pkl", &pickle(6, 0, &[6], &[1]))]);
    refused(&gone, &["\"a\"", "data/0", "storage"]);
}

#[test]
fn the_byte_order_is_that_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|x| x.to_be_bytes()).collect();
    let pickle = pickle(2, 0, &[2], &[1]);
    let make =
        |order: &[u8]| archive(folder.path(), &[("data.pkl", &pickle), ("byteorder", order), ("data/0", &bytes)]);
    assert_eq!(TensorFile::open(&make(b"big")).unwrap().get_f32("a", &[2]).unwrap(), [1.5, -2.0]);
    assert_ne!(TensorFile::open(&make(b"little")).unwrap().get_f32("a", &[2]).unwrap(), [1.5, -2.0]);
    refused(&make(b"middle"), &["byte order", "middle"]);
}

/// Each pickle with the words of its refusal.
#[test]
fn hostile_pickles_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let deep = [&b"\x80\x02"[..], &vec![b']'; 100_000], &vec![b'a'; 99_999], b"."].concat();
    // Each level holds the one below twice: 2^60 values, were anybody to visit them.
    let wide = [&b"\x80\x02)"[..], &b"2\x86".repeat(60), b"."].concat();
    let many = [&b"\x80\x02("[..], &vec![b'N'; 5_000_000], b"t."].concat();
    let cases: [(&[u8], &[&str]); 17] = [
        (b"\x80\x02cos\nsystem\n(X\x02\0\0\0lstR.", &["os.system", "run code"]),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", &["os.system", "run code"]),
        (b"(ios\nsystem\n.", &["INST", "run code"]),
        (b"(ccollections\nOrderedDict\no.", &["OBJ", "run code"]),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", &["NEWOBJ", "run code"]),
        (b"\x80\x02ctorch\nFloatStorage\n}b.", &["BUILD", "run code"]),
        (b"\x80\x02\x82\x01.", &["EXT", "run code"]),
        (b"\x80\x02}ctorch\nfloat32\nb.", &["BUILD", "run code"]),
        (b"\x80\x02ctorch._utils\n_rebuild_device_tensor_from_numpy\n.", &["_rebuild_device_tensor_from_numpy"]),
        (b"\x80\x02ctorch\nload\n.", &["torch.load", "run code"]),
        (b"\x80\x02}R.", &["byte", "2 values"]),
        (b"\x80\x02NN\x85R.", &["byte", "no function"]),
        (b"\x80\x02Q.", &["byte", "empty"]),
        (&deep, &["no dict of named tensors"]),
        (&wide, &["no dict of named tensors"]),
        (&many, &["4194304 values"]),
        (b"\x80\x02}", &["byte", "ends"]),
    ];
    for (pickle, words) in cases {
        refused(&archive(folder.path(), &[("data.pkl", pickle)]), words);
    }
}

#[test]
fn damaged_archives_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.bin");
    let good = fs::read(file("zip2.pt")).unwrap();
    for length in [4, 30, 100, good.len() / 2, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        refused(&path, &["damaged or incomplete"]);
    }
    // A changed byte of the pickle is caught by the archive's checksum.
    let mut changed = good.clone();
    let at = changed.windows(9).position(|w| w == b"transpose").unwrap();
    changed[at] = b'B';
    fs::write(&path, &changed).unwrap();
    refused(&path, &["data.pkl", "checksum"]);

    let good = fs::read(file("legacy2.pt")).unwrap();
    for cut in [1, 5, 100] {
        fs::write(&path, &good[..good.len() - cut]).unwrap();
        assert!(matches!(refused(&path, &["truncated"]), FileError::Truncated { .. }));
    }
    for length in [20, 100, 1000] {
        fs::write(&path, &good[..length]).unwrap();
        refused(&path, &["byte"]);
    }
}

#[test]
fn shards_may_be_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let shard = "diffusion_pytorch_model-00001-of-00001.bin";
    fs::copy(file("zip2.pt"), folder.path().join(shard)).unwrap();
    let index = serde_json::json!({"metadata": {}, "weight_map": {"scalar": shard, "conv.bias": shard}});
    fs::write(folder.path().join("diffusion_pytorch_model.bin.index.json"), index.to_string()).unwrap();
    let source = WeightSource::open(folder.path()).unwrap();
    assert_eq!(source.names().collect::<Vec<_>>(), ["conv.bias", "scalar"]);
    assert_eq!(source.get_f32("scalar", &[]).unwrap(), [-1.5]);
}
