//! Axes and curves in a rectangle: what all plots share.

use super::canvas::{Canvas, Font, Rgb};
use super::ticks::Scale;

pub(super) const TEXT: Rgb = [50, 50, 56];
const AXIS: Rgb = [120, 120, 128];
const RULE: Rgb = [228, 228, 233];
const FAINT_RULE: Rgb = [243, 243, 246];

/// The rectangle inside the axes, in pixels, and the scales along its sides.
pub(super) struct Frame {
    pub left: f32,
    pub top: f32,
    pub right: f32,
    pub bottom: f32,
    pub x: Scale,
    pub y: Scale,
}

impl Frame {
    pub fn column(&self, step: f64) -> f32 {
        self.left + (self.right - self.left) * self.x.position(step) as f32
    }

    /// Values outside the shown range lie on the edge.
    pub fn row(&self, loss: f64) -> f32 {
        self.bottom - (self.bottom - self.top) * (self.y.position(loss) as f32).clamp(0.0, 1.0)
    }

    pub fn draw_axes(&self, canvas: &mut Canvas, x_name: &str, y_name: &str) {
        let font = Font::Small;
        let half = font.height() as i64 / 2;
        for tick in self.y.ticks(8) {
            let y = self.row(tick.value).round();
            let colour = if tick.label.is_empty() { FAINT_RULE } else { RULE };
            canvas.line((self.left, y), (self.right, y), 1.0, colour, 1.0);
            let x = self.left as i64 - 10 - font.width(&tick.label) as i64;
            canvas.text(x, y as i64 - half, &tick.label, font, TEXT);
        }
        for tick in self.x.ticks(8) {
            let x = self.column(tick.value).round();
            canvas.line((x, self.top), (x, self.bottom), 1.0, RULE, 1.0);
            canvas.line((x, self.bottom), (x, self.bottom + 5.0), 1.0, AXIS, 1.0);
            centred(canvas, x as i64, self.bottom as i64 + 9, &tick.label, font);
        }
        canvas.line((self.left, self.top), (self.left, self.bottom), 1.0, AXIS, 1.0);
        canvas.line((self.left, self.bottom), (self.right, self.bottom), 1.0, AXIS, 1.0);
        let (middle_x, middle_y) = ((self.left + self.right) / 2.0, (self.top + self.bottom) / 2.0);
        centred(canvas, middle_x as i64, self.bottom as i64 + 32, x_name, font);
        let y = middle_y as i64 + font.width(y_name) as i64 / 2;
        canvas.text_up(8, y, y_name, font, TEXT);
    }

    pub fn draw_curve(&self, canvas: &mut Canvas, points: &[(f64, f64)], width: f32, colour: Rgb) {
        let pixels = thin(points.iter().map(|&(step, loss)| (self.column(step), self.row(loss))));
        if let [only] = pixels[..] {
            canvas.line(only, only, width + 3.0, colour, 1.0);
        }
        for pair in pixels.windows(2) {
            canvas.line(pair[0], pair[1], width, colour, 1.0);
        }
    }
}

/// Text around a column.
pub(super) fn centred(canvas: &mut Canvas, x: i64, y: i64, text: &str, font: Font) {
    canvas.text(x - font.width(text) as i64 / 2, y, text, font, TEXT);
}

/// At most four points in a pixel column (first, lowest, highest, last) look the same as thousands and are drawn at once.
fn thin(pixels: impl Iterator<Item = (f32, f32)>) -> Vec<(f32, f32)> {
    let mut kept: Vec<(f32, f32)> = Vec::new();
    let mut column: Vec<(f32, f32)> = Vec::new();
    let flush = |column: &mut Vec<(f32, f32)>, kept: &mut Vec<(f32, f32)>| {
        let extreme = |sign: f32| column.iter().copied().reduce(|a, b| if sign * b.1 > sign * a.1 { b } else { a });
        if column.len() > 4 {
            kept.extend(
                column
                    .first()
                    .copied()
                    .into_iter()
                    .chain(extreme(-1.0))
                    .chain(extreme(1.0))
                    .chain(column.last().copied()),
            );
            column.clear();
        }
        kept.append(column);
    };
    for pixel in pixels {
        if column.last().is_some_and(|last| last.0.floor() != pixel.0.floor()) {
            flush(&mut column, &mut kept);
        }
        column.push(pixel);
    }
    flush(&mut column, &mut kept);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_extremes_of_each_column() {
        let pixels: Vec<(f32, f32)> = (0..10_000).map(|i| (i as f32 / 100.0, ((i * 7919) % 1009) as f32)).collect();
        let kept = thin(pixels.iter().copied());
        assert!(kept.len() <= 400);
        for column in 0..100 {
            let range = |points: &[(f32, f32)]| {
                points
                    .iter()
                    .filter(|p| p.0.floor() == column as f32)
                    .fold((f32::MAX, f32::MIN), |(low, high), p| (low.min(p.1), high.max(p.1)))
            };
            assert_eq!(range(&kept), range(&pixels));
        }
    }
}
