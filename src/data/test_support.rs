//! Files for the tests of the readers, made by the published layouts.

use std::io::Write;

/// An IDX file of unsigned bytes.
pub(super) fn idx_bytes(dimensions: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dimensions.len() as u8];
    dimensions.iter().for_each(|extent| bytes.extend_from_slice(&extent.to_be_bytes()));
    bytes.extend_from_slice(data);
    bytes
}

/// `bytes`, gzipped.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
