//! Animated GIFs, for example of the way from noise to samples.

use std::io::{self, Write};
use std::path::Path;

use gif::{Encoder, EncodingError, Frame, Repeat};

use super::atomic::AtomicFile;
use super::{Canvas, FileError};

/// How fast an animation runs, in hundredths of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Time a frame is shown.
    pub frame: u16,
    /// Time the last frame is shown before the animation starts again.
    pub last: u16,
}

impl Default for Timing {
    /// 20 frames a second, the result held for two seconds.
    fn default() -> Self {
        Self { frame: 5, last: 200 }
    }
}

/// Writes an endless animation, atomically. Frames are encoded as they come.
///
/// Grey frames keep their exact values; coloured ones too if they have up to 256 colours, else they get a palette each.
///
/// # Errors
/// [`FileError::Unwritable`]: no frame, over 65,535 pixels a side, or frames of different size. [`FileError::Os`].
pub fn write_gif(path: &Path, frames: impl IntoIterator<Item = Canvas>, timing: Timing) -> Result<(), FileError> {
    let unwritable = |problem| FileError::Unwritable { path: path.to_path_buf(), problem };
    let mut frames = frames.into_iter().peekable();
    let Some(first) = frames.peek() else {
        return Err(unwritable("there are no frames".into()));
    };
    let (width, height) = (first.width(), first.height());
    let (Ok(w), Ok(h)) = (u16::try_from(width), u16::try_from(height)) else {
        return Err(unwritable(format!(
            "{width} x {height} pixels are over a GIF's 65535; write fewer or smaller images"
        )));
    };
    let failed = |error| FileError::os("write", path)(as_io(error));
    let greys: Vec<u8> = (0..=255).flat_map(|level| [level; 3]).collect();
    let mut encoder = Encoder::new(AtomicFile::create(path)?, w, h, &greys).map_err(failed)?;
    encoder.set_repeat(Repeat::Infinite).map_err(failed)?;
    while let Some(canvas) = frames.next() {
        if (canvas.width(), canvas.height()) != (width, height) {
            return Err(unwritable(format!(
                "a frame of {} x {} pixels follows one of {width} x {height}",
                canvas.width(),
                canvas.height()
            )));
        }
        let mut frame = match canvas.grey() {
            Some(indices) => Frame { width: w, height: h, buffer: indices.into(), ..Frame::default() },
            None => Frame::from_rgb_speed(w, h, canvas.rgb(), 10),
        };
        frame.delay = if frames.peek().is_some() { timing.frame } else { timing.last };
        encoder.write_frame(&frame).map_err(failed)?;
    }
    let mut file = encoder.into_inner().map_err(failed)?;
    file.flush().map_err(FileError::os("write", path))?;
    file.commit()
}

fn as_io(error: EncodingError) -> io::Error {
    match error {
        EncodingError::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gif::{ColorOutput, DecodeOptions};

    #[test]
    fn frames_delays_and_loop_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gif");
        let mut frames: Vec<Canvas> = (0..3u8)
            .map(|n| {
                let mut canvas = Canvas::new(17, 9, [n; 3]);
                for i in 0..17 * 9i64 {
                    canvas.fill(i % 17, i / 17, 1, 1, [(i as u8).wrapping_mul(n + 1); 3]);
                }
                canvas
            })
            .collect();
        frames[1].fill(3, 3, 4, 4, [250, 10, 20]);
        write_gif(&path, frames.clone(), Timing { frame: 7, last: 123 }).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // The looping extension, 0 meaning without end.
        assert!(bytes.windows(16).any(|w| w == b"NETSCAPE2.0\x03\x01\x00\x00\x00"));
        let mut options = DecodeOptions::new();
        options.set_color_output(ColorOutput::RGBA);
        let mut decoder = options.read_info(&bytes[..]).unwrap();
        for (canvas, delay) in frames.iter().zip([7, 7, 123]) {
            let frame = decoder.read_next_frame().unwrap().unwrap();
            assert_eq!((frame.width, frame.height, frame.delay), (17, 9, delay));
            let rgb: Vec<u8> = frame.buffer.chunks(4).flat_map(|p| p[..3].to_vec()).collect();
            assert_eq!(rgb, canvas.rgb());
        }
        assert!(decoder.read_next_frame().unwrap().is_none());
    }

    #[test]
    fn impossible_animations_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gif");
        let sizes: [&[(usize, usize)]; 3] = [&[], &[(70_000, 1)], &[(2, 2), (2, 3)]];
        for sizes in sizes {
            let frames = sizes.iter().map(|&(w, h)| Canvas::new(w, h, [0; 3]));
            assert!(matches!(write_gif(&path, frames, Timing::default()), Err(FileError::Unwritable { .. })));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
