//! Which model it is, in 64 hexadecimal digits.

use std::fs::File;
use std::io::Read;

use sha2::{Digest, Sha256};

use super::{ClassifierModel, ModelError, ModelFolder};
use crate::io::{FileError, WeightSource};

impl ModelFolder {
    /// SHA-256 of the network's configuration, of the scheduler's and of the weight files. The folder's name does not enter, nor
    /// how the configurations are spelled.
    ///
    /// # Errors
    /// [`ModelError::File`] if the weights cannot be read.
    pub fn fingerprint(&self) -> Result<String, ModelError> {
        let mut hash = Sha256::new();
        for text in [self.config.to_json(), self.scheduler.to_json()] {
            // With its length, so that no text can pass for the end of one and the start of the next.
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash_files(&mut hash, &self.weights()?)?;
        Ok(hexadecimal(hash))
    }
}

impl ClassifierModel {
    /// SHA-256 of the configuration and of the weight file.
    ///
    /// # Errors
    /// [`ModelError::File`] if the weights cannot be read.
    pub fn fingerprint(&self) -> Result<String, ModelError> {
        let mut hash = Sha256::new();
        hash.update(format!("{:?}", self.config));
        hash_files(&mut hash, &self.weights()?)?;
        Ok(hexadecimal(hash))
    }
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash_files(hash: &mut Sha256, weights: &WeightSource) -> Result<(), ModelError> {
    for path in weights.files() {
        let mut file = File::open(path).map_err(FileError::os("open", path))?;
        let length = file.metadata().map_err(FileError::os("inspect", path))?.len();
        hash.update(length.to_le_bytes());
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer).map_err(FileError::os("read", path))? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
    }
    Ok(())
}
