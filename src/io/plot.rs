//! The picture of a training run: loss over steps.

use std::path::Path;

use super::FileError;
use super::canvas::{Canvas, Font, Rgb, WHITE};
use super::frame::{Frame, TEXT, centred};
use super::ticks::Scale;

const RAW: Rgb = [168, 196, 230];
const SMOOTHED: Rgb = [18, 74, 150];

/// A loss curve: the values as they are, light, and their running mean, dark.
#[derive(Debug, Clone, Copy)]
pub struct LossPlot<'a> {
    /// The line above.
    pub title: &'a str,
    /// (step, loss) by ascending step. Pairs that are not finite are left out, and on a logarithmic axis losses of 0 or less.
    pub points: &'a [(f64, f64)],
    /// Whether the loss axis is logarithmic.
    pub log_y: bool,
    /// Width of the picture in pixels.
    pub width: usize,
    /// Height of the picture in pixels.
    pub height: usize,
}

impl<'a> LossPlot<'a> {
    /// A plot of 960 by 540 pixels with a linear axis.
    pub fn new(title: &'a str, points: &'a [(f64, f64)]) -> Self {
        Self { title, points, log_y: false, width: 960, height: 540 }
    }

    /// Draws the plot. Without a single point to show it says so.
    pub fn draw(&self) -> Canvas {
        let visible = |loss: f64| loss.is_finite() && (!self.log_y || loss > 0.0);
        let points: Vec<(f64, f64)> =
            self.points.iter().copied().filter(|&(step, loss)| step.is_finite() && visible(loss)).collect();
        let mut canvas = Canvas::new(self.width, self.height, WHITE);
        canvas.text(84, 14, self.title, Font::Title, TEXT);
        let (Some(&(first, _)), Some(&(last, _))) = (points.first(), points.last()) else {
            centred(&mut canvas, self.width as i64 / 2, self.height as i64 / 2, "no loss to show yet", Font::Small);
            return canvas;
        };
        let smoothed = running_mean(&points);
        let (low, high) = shown_range(&points, &smoothed);
        let frame = Frame {
            left: 84.0,
            top: 48.0,
            right: (self.width as f32 - 24.0).max(85.0),
            bottom: (self.height as f32 - 58.0).max(49.0),
            x: Scale::around(first, last, 0.0, false),
            y: Scale::around(low, high, 0.06, self.log_y),
        };
        frame.draw_axes(&mut canvas, "training step", if self.log_y { "loss (log)" } else { "loss" });
        frame.draw_curve(&mut canvas, &points, 1.0, RAW);
        frame.draw_curve(&mut canvas, &smoothed, 2.4, SMOOTHED);
        draw_legend(&mut canvas, frame.right as i64);
        canvas
    }

    /// Draws the plot and writes it as a PNG, atomically.
    ///
    /// # Errors
    /// Those of [`Canvas::write_png`].
    pub fn write_png(&self, path: &Path) -> Result<(), FileError> {
        self.draw().write_png(path)
    }
}

/// Right-aligned over the frame, beside the title.
fn draw_legend(canvas: &mut Canvas, right: i64) {
    let font = Font::Small;
    let mut right = right;
    for (name, colour, thickness) in [("running mean", SMOOTHED, 2.4), ("loss", RAW, 1.6)] {
        let left = right - font.width(name) as i64;
        let y = 16;
        let middle = (y + font.height() as i64 / 2) as f32;
        canvas.text(left, y, name, font, TEXT);
        let line_end = left as f32 - 8.0;
        canvas.line((line_end - 24.0, middle), (line_end, middle), thickness, colour, 1.0);
        right = left - 56;
    }
}

/// The mean over a fortieth of the points around each, enough to see a trend through the noise of the timesteps.
///
/// The window is centred, so the mean does not lag, and narrower near the start, where the loss falls fastest.
fn running_mean(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut sums = vec![0.0];
    for &(_, loss) in points {
        sums.push(sums.last().copied().unwrap_or(0.0) + loss);
    }
    let mean = |index: usize, step: f64| {
        let half = (points.len() / 80).min(index / 4);
        let (begin, end) = (index - half, (index + half + 1).min(points.len()));
        (step, (sums[end] - sums[begin]) / (end - begin) as f64)
    };
    points.iter().enumerate().map(|(index, &(step, _))| mean(index, step)).collect()
}

/// The losses to show: all of the running mean and all but the most extreme half percent on each side of the raw values, so that a
/// few spikes do not press the curve flat.
fn shown_range(points: &[(f64, f64)], smoothed: &[(f64, f64)]) -> (f64, f64) {
    let mut losses: Vec<f64> = points.iter().map(|&(_, loss)| loss).collect();
    losses.sort_by(f64::total_cmp);
    let spare = losses.len() / 200;
    let inner = losses.get(spare..losses.len() - spare).unwrap_or_default();
    inner
        .iter()
        .copied()
        .chain(smoothed.iter().map(|&(_, loss)| loss))
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), loss| (low.min(loss), high.max(loss)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixels of exactly this colour: column and row.
    fn find(canvas: &Canvas, colour: Rgb) -> Vec<(usize, usize)> {
        (0..canvas.height())
            .flat_map(|y| (0..canvas.width()).map(move |x| (x, y)))
            .filter(|&(x, y)| canvas.pixel(x, y) == Some(colour))
            .collect()
    }

    #[test]
    fn the_running_mean_is_the_mean_around() {
        let points: Vec<(f64, f64)> = (0..400).map(|i| (f64::from(i), f64::from(i * i % 97))).collect();
        let smoothed = running_mean(&points);
        for (index, window) in [(0, 0..1), (3, 3..4), (9, 7..12), (200, 195..206), (398, 393..400)] {
            let length = window.len() as f64;
            let expected = points[window].iter().map(|p| p.1).sum::<f64>() / length;
            assert!((smoothed[index].1 - expected).abs() < 1e-9, "{index}");
        }
        assert_eq!(running_mean(&points[..30]), points[..30]);
    }

    #[test]
    fn a_straight_line_is_drawn_where_the_axes_say() {
        for log_y in [false, true] {
            let points: Vec<(f64, f64)> = (0..=20)
                .map(|i| f64::from(i) / 20.0)
                .map(|s| (s * 1000.0, if log_y { 10f64.powf(-3.0 * s) } else { 1.0 - s }))
                .collect();
            let plot = LossPlot { log_y, ..LossPlot::new("t", &points) };
            let canvas = plot.draw();
            let dark = find(&canvas, SMOOTHED);
            // Above the frame is the legend, in the same colour.
            let dark: Vec<_> = dark.into_iter().filter(|&(_, y)| y >= 48).collect();
            let (left, right, top, bottom) = (84.0, 936.0, 48.0, 482.0);
            for &(x, y) in &dark {
                let along = (x as f64 - left) / (right - left);
                let expected = bottom - (bottom - top) * ((1.0 - along + 0.06) / 1.12);
                assert!((y as f64 - expected).abs() <= 1.5, "({x}, {y}), expected row {expected}");
            }
            assert!(dark.len() > 800);
        }
    }

    #[test]
    fn spikes_and_gaps_do_not_spoil_it() {
        let mut points: Vec<(f64, f64)> = (0..5000).map(|i| (f64::from(i), 1.0 + f64::from(i % 7) * 0.01)).collect();
        points[100].1 = f64::NAN;
        points[200].1 = f64::INFINITY;
        points[300].1 = 50.0;
        let (low, high) = shown_range(&points[301..], &[]);
        assert_eq!((low, high), (1.0, 1.06));
        let finite: Vec<_> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
        assert!(shown_range(&finite, &running_mean(&finite)).1 < 2.0);
        assert!(find(&LossPlot::new("t", &points).draw(), SMOOTHED).len() > 800);
    }

    #[test]
    fn degenerate_input_still_gives_a_picture() {
        for points in
            [&[][..], &[(0.0, f64::NAN)], &[(5.0, 0.1)], &[(5.0, 0.1), (5.0, 0.1)], &[(0.0, -1.0), (1.0, 0.0)]]
        {
            for log_y in [false, true] {
                for (width, height) in [(960, 540), (20, 20)] {
                    let plot = LossPlot { log_y, width, height, ..LossPlot::new("a title", points) };
                    assert_eq!((plot.draw().width(), plot.draw().height()), (width, height));
                }
            }
        }
    }
}
