//! What the parts of a configuration ask of one another.

use super::{ClassEmbedding, ConfigError, TimeEmbeddingType, UNetConfig};

impl UNetConfig {
    /// Checks what single blocks ask for.
    pub(super) fn check_blocks(&self) -> Result<(), ConfigError> {
        let invalid = |key, detail: String| Err(ConfigError::Invalid { key, detail });
        let channels = &self.block_out_channels;
        let grouped_down = self.down_block_types.iter().map(|b| b.takes_groups());
        let grouped_up = self.up_block_types.iter().rev().map(|b| b.takes_groups());
        let grouped: Vec<bool> = grouped_down.zip(grouped_up).map(|(down, up)| down || up).collect();
        if grouped.contains(&true) && self.norm_num_groups.is_none() {
            return invalid("norm_num_groups", "may be null only where every block is a Skip or a K block".into());
        }
        for (level, &c) in channels.iter().enumerate() {
            // The middle block and the last norm have groups whatever the others have.
            let ends = level == 0 || level + 1 == channels.len();
            let groups = self.groups(c);
            if (grouped[level] || ends) && (groups == 0 || c % groups != 0) {
                return invalid(
                    "block_out_channels",
                    format!("{c} channels do not divide into norm_num_groups = {groups} groups"),
                );
            }
        }
        // The last block of each half does not resample, and has no convolution between the image and the network.
        let inner = channels.len() - 1;
        for (key, skips, channels) in [
            ("in_channels", self.down_block_types[..inner].iter().any(|b| b.is_skip()), self.in_channels),
            ("out_channels", self.up_block_types[..inner].iter().any(|b| b.is_skip()), self.out_channels),
        ] {
            if skips && channels != 3 {
                return invalid(
                    key,
                    format!("is {channels}; Skip blocks carry an image of 3 channels beside the network"),
                );
            }
        }
        Ok(())
    }

    /// Checks that the network can be trained; `from_zero` says that timesteps are those of a chain, which begins with 0.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for networks that read the logarithm of a noise level, and for two uses of one table.
    pub fn check_trainable(&self, from_zero: bool) -> Result<(), ConfigError> {
        let key = "time_embedding_type";
        let detail = match (self.time_embedding_type, self.class_embed_type) {
            (TimeEmbeddingType::Fourier, _) if from_zero => {
                "fourier reads the logarithm of a noise level, and timestep 0 has none; train with positional"
            }
            (TimeEmbeddingType::Learned, Some(ClassEmbedding::Timestep)) => {
                "learned shares its table with class_embed_type = timestep and cannot be trained; take num_class_embeds"
            }
            _ => return Ok(()),
        };
        Err(ConfigError::Invalid { key, detail: detail.into() })
    }

    /// Checks that a learned time embedding has a row for each of `timesteps`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the timestep that has none.
    pub fn check_timesteps(&self, timesteps: impl IntoIterator<Item = f64>) -> Result<(), ConfigError> {
        let (TimeEmbeddingType::Learned, Some(rows)) = (self.time_embedding_type, self.num_train_timesteps) else {
            return Ok(());
        };
        let has_row = |t: &f64| t.fract() == 0.0 && (0.0..rows as f64).contains(t);
        match timesteps.into_iter().find(|t| !has_row(t)) {
            None => Ok(()),
            Some(t) => Err(ConfigError::Invalid {
                key: "num_train_timesteps",
                detail: format!("the time embedding has a row for each of {rows} timesteps, and none for {t}"),
            }),
        }
    }
}
