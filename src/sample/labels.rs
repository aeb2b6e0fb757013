//! Which class each sample is of.

use super::SampleError;
use crate::unet::UNetConfig;

/// The classes of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LabelChoice {
    /// Sample i is of class i modulo the number of classes; nothing for a model without classes.
    #[default]
    Balanced,
    /// All samples are of one class.
    Only(u32),
}

impl LabelChoice {
    /// The label of each sample of `indices`, or `None` for a model without classes.
    ///
    /// # Errors
    /// A label that the model does not have, or a condition that is not a class.
    pub fn labels(self, config: &UNetConfig, indices: std::ops::Range<usize>) -> Result<Option<Vec<u32>>, SampleError> {
        if config.class_embed_type.is_some() {
            let kind = "the model is conditioned on numbers or vectors, not on classes; sample it through the library";
            return Err(SampleError::Condition(kind.into()));
        }
        self.of_classes(config.classes(), indices)
    }

    /// The label of each sample of `indices` among so many classes, or `None` where there are none.
    ///
    /// # Errors
    /// A label beyond them.
    pub(super) fn of_classes(
        self,
        classes: Option<usize>,
        indices: std::ops::Range<usize>,
    ) -> Result<Option<Vec<u32>>, SampleError> {
        match (classes, self) {
            (None, LabelChoice::Balanced) => Ok(None),
            (None, LabelChoice::Only(_)) => {
                Err(SampleError::Condition("the model is not class-conditional; leave out the label".into()))
            }
            (Some(0), _) => Err(SampleError::Condition("the model has no class but the null class".into())),
            (Some(classes), LabelChoice::Balanced) => Ok(Some(indices.map(|i| (i % classes) as u32).collect())),
            (Some(classes), LabelChoice::Only(label)) if (label as usize) < classes => {
                Ok(Some(vec![label; indices.len()]))
            }
            (Some(classes), LabelChoice::Only(label)) => Err(SampleError::Label { label, classes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rows: Option<usize>, null_class: Option<usize>) -> UNetConfig {
        UNetConfig { num_class_embeds: rows, null_class, ..UNetConfig::default() }
    }

    #[test]
    fn balanced_labels_cycle_and_leave_out_the_null_class() {
        let labels = LabelChoice::Balanced.labels(&config(Some(4), Some(3)), 5..12).unwrap();
        assert_eq!(labels, Some(vec![2, 0, 1, 2, 0, 1, 2]));
        assert_eq!(LabelChoice::Balanced.labels(&config(None, None), 0..2).unwrap(), None);
    }

    #[test]
    fn labels_out_of_range_are_refused() {
        assert_eq!(LabelChoice::Only(2).labels(&config(Some(3), None), 0..2).unwrap(), Some(vec![2, 2]));
        let error = LabelChoice::Only(3).labels(&config(Some(4), Some(3)), 0..1).unwrap_err();
        assert!(matches!(error, SampleError::Label { label: 3, classes: 3 }));
        assert!(error.to_string().contains("0..=2"), "{error}");
        assert!(LabelChoice::Only(0).labels(&config(None, None), 0..1).is_err());
    }
}
