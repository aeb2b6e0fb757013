//! Curves over one axis, one panel below the other.

use std::path::Path;

use super::FileError;
use super::canvas::{Canvas, Font, Rgb, WHITE};
use super::frame::{Frame, TEXT, centred};
use super::ticks::Scale;

const CURVE: Rgb = [18, 74, 150];
const WIDTH: usize = 960;
/// Height of a panel with its axis.
const PANEL: usize = 270;
/// Height of the title.
const TOP: usize = 48;

/// A picture of curves.
#[derive(Debug, Clone)]
pub struct Curves<'a> {
    /// The line above.
    pub title: String,
    /// Name of the axis that all panels share.
    pub x_name: &'a str,
    /// The panels, from above.
    pub panels: Vec<Panel<'a>>,
}

/// One curve.
#[derive(Debug, Clone)]
pub struct Panel<'a> {
    /// What it shows.
    pub name: &'a str,
    /// By ascending x. Pairs that are not finite are left out, and on a logarithmic axis values of 0 or less.
    pub points: Vec<(f64, f64)>,
    /// Whether the vertical axis is logarithmic.
    pub log_y: bool,
}

impl Curves<'_> {
    /// Draws the picture. A panel without a single point to show says so.
    pub fn draw(&self) -> Canvas {
        let mut canvas = Canvas::new(WIDTH, TOP + PANEL * self.panels.len(), WHITE);
        canvas.text(84, 14, &self.title, Font::Title, TEXT);
        for (at, panel) in self.panels.iter().enumerate() {
            panel.draw(&mut canvas, TOP + PANEL * at, self.x_name);
        }
        canvas
    }

    /// Draws the picture and writes it as a PNG, atomically.
    ///
    /// # Errors
    /// Those of [`Canvas::write_png`].
    pub fn write_png(&self, path: &Path) -> Result<(), FileError> {
        self.draw().write_png(path)
    }
}

impl Panel<'_> {
    fn draw(&self, canvas: &mut Canvas, top: usize, x_name: &str) {
        let shown = |y: f64| y.is_finite() && (!self.log_y || y > 0.0);
        let points: Vec<(f64, f64)> = self.points.iter().copied().filter(|&(x, y)| x.is_finite() && shown(y)).collect();
        if points.is_empty() {
            let text = format!("{}: nothing to show", self.name);
            centred(canvas, WIDTH as i64 / 2, (top + PANEL / 2) as i64, &text, Font::Small);
            return;
        }
        let (low, high) = range(points.iter().map(|&(_, y)| y));
        // Of the points that are not shown, too, so that panels of the same x are alike.
        let (first, last) = range(self.points.iter().map(|&(x, _)| x));
        let frame = Frame {
            left: 84.0,
            top: top as f32,
            right: WIDTH as f32 - 24.0,
            bottom: (top + PANEL) as f32 - 62.0,
            x: Scale::around(first, last, 0.0, false),
            y: Scale::around(low, high, 0.06, self.log_y),
        };
        frame.draw_axes(canvas, x_name, self.name);
        frame.draw_curve(canvas, &points, 2.0, CURVE);
    }
}

/// The smallest and the largest finite value.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let wider = |(low, high): (f64, f64), v: f64| (low.min(v), high.max(v));
    values.filter(|v| v.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), wider)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_panel_shows_its_curve_within_its_axes() {
        let line = |slope: f64| (1..=50).map(|i| (f64::from(i), 10f64.powf(slope * f64::from(i)))).collect();
        let panel = |points, log_y| Panel { name: "y", points, log_y };
        let gaps = vec![(0.0, f64::NAN), (1.0, -1.0), (2.0, 0.0)];
        let panels = vec![panel(line(-0.1), true), panel(line(0.02), false), panel(gaps, true)];
        let canvas = Curves { title: "t".into(), x_name: "x", panels }.draw();
        assert_eq!((canvas.width(), canvas.height()), (WIDTH, TOP + 3 * PANEL));
        for at in 0..3 {
            let (top, bottom) = (TOP + PANEL * at, TOP + PANEL * (at + 1) - 62);
            let column = |x: usize| (top..=bottom).filter(|&y| canvas.pixel(x, y) == Some(CURVE)).min();
            let (left, right) = (column(90), column(930));
            match at {
                // Falls on a straight line in the logarithm, which halves in the middle.
                0 => {
                    let middle = column(510).unwrap() as f64;
                    let (left, right) = (left.unwrap() as f64, right.unwrap() as f64);
                    assert!(left < middle && (middle - (left + right) / 2.0).abs() < 2.0, "{left} {middle} {right}");
                }
                1 => assert!(left.unwrap() > right.unwrap() + 100),
                _ => assert_eq!((left, right), (None, None)),
            }
        }
    }
}
