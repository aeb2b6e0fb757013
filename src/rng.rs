//! Counter-based randomness: every random number is a pure function of (seed, sample, step, element, stream).
//!
//! So image *i* of seed *s* is the same whatever the batch size, the number of workers, the backend or the restart point.

mod philox;

pub use philox::philox4x32_10;

/// What a random number is for; part of the counter, so that streams never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// x_T of a sampling run.
    InitialNoise,
    /// z of a sampling step.
    SamplerNoise,
    /// eps of forward noising in training.
    TrainingNoise,
    /// The timestep of a training example.
    Timestep,
    /// Horizontal flips.
    Flip,
    /// Label dropout for classifier-free guidance.
    LabelDrop,
    /// Noise of the variational bound's evaluation.
    BoundNoise,
    /// Initial weights; the sample index is the parameter's.
    Weights,
    /// Noise that editing an image adds beside the steps; the step index counts its draws.
    EditNoise,
    /// Dropout layer of a network.
    Dropout(u32),
}

impl Stream {
    fn tag(self) -> u32 {
        match self {
            Stream::InitialNoise => 0,
            Stream::SamplerNoise => 1,
            Stream::TrainingNoise => 2,
            Stream::Timestep => 3,
            Stream::Flip => 4,
            Stream::LabelDrop => 5,
            Stream::BoundNoise => 6,
            Stream::Weights => 7,
            Stream::EditNoise => 8,
            Stream::Dropout(layer) => 256 + layer,
        }
    }
}

/// One sequence of random numbers: a seed, a stream, a sample and a step.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    key: [u32; 2],
    sample: u32,
    step: u32,
    tag: u32,
}

impl Sequence {
    /// The sequence of `sample` at `step`.
    pub fn new(seed: u64, stream: Stream, sample: u32, step: u32) -> Self {
        Self::with_key(split_seed(seed), stream, sample, step)
    }

    /// The same with the seed split into two words, as devices hold it.
    pub fn with_key(key: [u32; 2], stream: Stream, sample: u32, step: u32) -> Self {
        Self { key, sample, step, tag: stream.tag() }
    }

    /// Four random words: those of elements `4 * block ..`.
    pub fn words(&self, block: u32) -> [u32; 4] {
        philox4x32_10([block, self.step, self.sample, self.tag], self.key)
    }

    /// The random word of one element.
    pub fn word(&self, element: usize) -> u32 {
        self.words((element / 4) as u32)[element % 4]
    }

    /// A number in [0, 1) with 24 random bits, exact in f32.
    pub fn uniform(&self, element: usize) -> f32 {
        unit(self.word(element))
    }

    /// The numbers of elements `4 * block ..`, as [`Sequence::uniform`].
    pub fn uniforms(&self, block: u32) -> [f32; 4] {
        self.words(block).map(unit)
    }

    /// An integer in `0..n`.
    pub fn below(&self, element: usize, n: u32) -> u32 {
        ((u64::from(self.word(element)) * u64::from(n)) >> 32) as u32
    }

    /// Standard normals of elements `4 * block ..` by Box-Muller, in f32.
    pub fn normals(&self, block: u32) -> [f32; 4] {
        let w = self.words(block);
        let pair = |a: u32, b: u32| {
            let radius = (-2.0 * positive_unit(a).ln()).sqrt();
            let (sin, cos) = (std::f32::consts::TAU * unit(b)).sin_cos();
            (radius * cos, radius * sin)
        };
        let ((a, b), (c, d)) = (pair(w[0], w[1]), pair(w[2], w[3]));
        [a, b, c, d]
    }

    /// The normal of one element, computed in f64 from the same words: the yardstick of [`Sequence::normals`].
    pub fn normal_f64(&self, element: usize) -> f64 {
        let w = self.words((element / 4) as u32);
        let (a, b) = if element % 4 < 2 { (w[0], w[1]) } else { (w[2], w[3]) };
        let radius = (-2.0 * f64::from(positive_unit(a)).ln()).sqrt();
        let angle = std::f64::consts::TAU * f64::from(unit(b));
        radius * if element.is_multiple_of(2) { angle.cos() } else { angle.sin() }
    }

    /// Fills a slice with standard normals, element 0 first.
    pub fn fill_normal(&self, out: &mut [f32]) {
        for (block, chunk) in out.chunks_mut(4).enumerate() {
            chunk.copy_from_slice(&self.normals(block as u32)[..chunk.len()]);
        }
    }
}

/// The two words of a seed, low word first.
pub fn split_seed(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// In [0, 1).
fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// In (0, 1], so that its logarithm is finite.
fn positive_unit(word: u32) -> f32 {
    ((word >> 8) + 1) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_the_moments_of_a_standard_normal() {
        let mut x = vec![0.0; 200_000];
        Sequence::new(7, Stream::InitialNoise, 3, 0).fill_normal(&mut x);
        let n = x.len() as f64;
        let moment = |k: i32| x.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / n;
        // Five standard errors of each moment's estimate.
        assert!(moment(1).abs() < 5.0 / n.sqrt());
        assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert!(moment(3).abs() < 5.0 * (15.0 / n).sqrt());
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
    }

    #[test]
    fn f32_and_f64_normals_agree_to_rounding() {
        let s = Sequence::new(u64::MAX - 5, Stream::TrainingNoise, 9, 2);
        let mut x = vec![0.0; 4099];
        s.fill_normal(&mut x);
        for (i, v) in x.iter().enumerate() {
            assert!((f64::from(*v) - s.normal_f64(i)).abs() < 4e-6, "element {i}");
        }
    }

    #[test]
    fn streams_samples_steps_and_seeds_differ() {
        let base = Sequence::new(1, Stream::InitialNoise, 0, 0).words(0);
        for other in [
            Sequence::new(2, Stream::InitialNoise, 0, 0),
            Sequence::new(1 << 32 | 1, Stream::InitialNoise, 0, 0),
            Sequence::new(1, Stream::SamplerNoise, 0, 0),
            Sequence::new(1, Stream::InitialNoise, 1, 0),
            Sequence::new(1, Stream::InitialNoise, 0, 1),
        ] {
            assert_ne!(base, other.words(0));
        }
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut counts = [0u32; 7];
        for sample in 0..7000 {
            counts[Sequence::new(5, Stream::Timestep, sample, 0).below(0, 7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (c as i32 - 1000).abs() < 5 * 30), "{counts:?}");
    }
}
