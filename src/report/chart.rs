//! Curves over a run, and how confidence compares with accuracy.

use super::drawing::{Anchor, Drawing, Ink, Shape};
use crate::metrics::Calibration;

/// Width and height of a chart.
pub const SIZE: (f64, f64) = (430.0, 270.0);
/// Room around the plane of the curves: left, top, right, bottom.
const ROOM: (f64, f64, f64, f64) = (52.0, 52.0, 14.0, 36.0);
/// More points than this are averaged into as many.
const POINTS: usize = 300;

/// A curve.
pub struct Curve {
    /// What the legend calls it; nothing if it belongs to another curve.
    pub name: String,
    /// Where it goes.
    pub points: Vec<(f64, f64)>,
    /// In what.
    pub ink: Ink,
    /// Whether it is only the background of another.
    pub faint: bool,
}

/// Curves over a common axis, which begins at 0 or, if lower, where the first of them does.
pub fn curves(title: &str, x_label: &str, from_zero: bool, curves: &[Curve]) -> Drawing {
    draw(title, x_label, None, from_zero, curves)
}

/// Curves over an axis that has names at 0, 1, 2, … instead of numbers; from zero.
pub fn curves_over(title: &str, x_label: &str, names: &[&str], curves: &[Curve]) -> Drawing {
    draw(title, x_label, Some(names), true, curves)
}

fn draw(
    title: &str,
    x_label: &str,
    names: Option<&[&str]>,
    from_zero: bool,
    curves: &[Curve],
) -> Drawing {
    let curves: Vec<Curve> = curves.iter().map(Curve::thinned).collect();
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let (x_low, x_high) = range(&mut points().map(|point| point.0));
    let x_low = x_low.min(0.0);
    let (y_low, y_high) = range(&mut points().map(|point| point.1));
    let mut drawing = Drawing::new(SIZE.0, SIZE.1);
    heading(&mut drawing, title);
    if points().next().is_none() {
        let middle = (SIZE.0 / 2.0, SIZE.1 / 2.0);
        drawing.words("nothing measured yet", middle, 11.0, Anchor::Middle, Ink::Muted);
        return drawing;
    }
    let y_low = if from_zero { 0.0 } else { y_low };
    let plane = Plane::new((x_low, x_high.max(x_low + 1e-9)), (y_low, y_high));
    plane.draw_y(&mut drawing);
    match names {
        Some(names) => plane.draw_x(&mut drawing, x_label, (0..).map(f64::from).zip(names)),
        None => {
            let whole = |x: &f64| x.fract() == 0.0 || plane.x.1 < 2.0;
            let marks = ticks(plane.x.0, plane.x.1, 7).into_iter().filter(whole);
            plane.draw_x(&mut drawing, x_label, marks.map(|x| (x, short(x))));
        }
    }
    let mut legend = ROOM.0;
    for curve in &curves {
        let points: Vec<_> = curve.points.iter().map(|&point| plane.place(point)).collect();
        let ink = curve.ink;
        let (width, opacity) = if curve.faint { (1.2, 0.45) } else { (2.2, 1.0) };
        if !curve.faint && points.len() <= 40 {
            for (&at, (x, y)) in points.iter().zip(&curve.points) {
                let title = format!("{}: {} at {x:.0}", curve.name, short(*y));
                drawing.shapes.push(Shape::Dot { at, radius: 3.0, ink, title });
            }
        }
        drawing.shapes.push(Shape::Line { points, width, ink, opacity });
        if curve.name.is_empty() {
            continue;
        }
        let swatch = vec![(legend, 36.0), (legend + 14.0, 36.0)];
        drawing.shapes.push(Shape::Line { points: swatch, width: width + 0.6, ink, opacity });
        drawing.words(&curve.name, (legend + 19.0, 40.0), 11.0, Anchor::Start, Ink::Muted);
        legend += 19.0 + 6.7 * curve.name.chars().count() as f64 + 14.0;
    }
    drawing
}

/// A reliability diagram: of the answers of about a confidence, how many were right.
pub fn reliability(calibration: &Calibration) -> Drawing {
    let mut drawing = Drawing::new(SIZE.0, SIZE.1);
    heading(&mut drawing, "Calibration");
    let plane = Plane::new((0.0, 1.0), (0.0, 1.0));
    plane.draw_y(&mut drawing);
    let marks = ticks(0.0, 1.0, 7).into_iter().map(|x| (x, short(x)));
    plane.draw_x(&mut drawing, "confidence", marks);
    let width = 1.0 / calibration.bins.len() as f64;
    for (index, bin) in calibration.bins.iter().enumerate().filter(|(_, bin)| bin.images > 0) {
        let left = index as f64 * width;
        let (x, y) = plane.place((left, bin.accuracy));
        let (right, bottom) = plane.place((left + width, 0.0));
        // A bin that is always wrong must be seen to be there.
        let height = (bottom - y).max(1.5);
        drawing.shapes.push(Shape::Box {
            at: (x + 1.0, bottom - height),
            size: (right - x - 2.0, height),
            ink: Ink::Series(0),
            opacity: 0.75,
            title: format!(
                "{} images, mean confidence {:.1} %, right {:.1} %",
                bin.images,
                100.0 * bin.confidence,
                100.0 * bin.accuracy
            ),
        });
        let at = plane.place((bin.confidence, bin.accuracy));
        let title = format!("{} images", bin.images);
        drawing.shapes.push(Shape::Dot { at, radius: 3.0, ink: Ink::Series(1), title });
    }
    drawing.shapes.push(Shape::Line {
        points: vec![plane.place((0.0, 0.0)), plane.place((1.0, 1.0))],
        width: 1.4,
        ink: Ink::Muted,
        opacity: 1.0,
    });
    let legend =
        format!("bars: share that was right; expected error {:.1} %", 100.0 * calibration.ece);
    drawing.words(legend, (ROOM.0, 40.0), 11.0, Anchor::Start, Ink::Muted);
    drawing
}

fn heading(drawing: &mut Drawing, title: &str) {
    drawing.words(title, (ROOM.0, 20.0), 13.0, Anchor::Start, Ink::Text);
}

impl Curve {
    /// The same curve in fewer points, each the mean of its neighbours; without what is not finite.
    fn thinned(&self) -> Self {
        let finite = |(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
        let points: Vec<_> = self.points.iter().filter(finite).copied().collect();
        let mean = |chunk: &[(f64, f64)]| {
            let sum =
                chunk.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
            (sum.0 / chunk.len() as f64, sum.1 / chunk.len() as f64)
        };
        let points = points.chunks(points.len().div_ceil(POINTS).max(1)).map(mean).collect();
        Self { name: self.name.clone(), points, ..*self }
    }
}

/// The plane of the curves.
struct Plane {
    x: (f64, f64),
    y: (f64, f64),
}

impl Plane {
    fn new(x: (f64, f64), y: (f64, f64)) -> Self {
        // A single value gets a range, and a curve some air above it.
        let high = if y.1 > y.0 { y.1 } else { y.0 + y.0.abs().max(1e-9) };
        Self { x, y: (y.0, high) }
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let (left, top, right, bottom) = ROOM;
        let share = |value: f64, (low, high): (f64, f64)| (value - low) / (high - low);
        (
            left + share(x, self.x) * (SIZE.0 - left - right),
            SIZE.1 - bottom - share(y, self.y) * (SIZE.1 - top - bottom),
        )
    }

    /// The lines across, and their numbers.
    fn draw_y(&self, drawing: &mut Drawing) {
        for y in ticks(self.y.0, self.y.1, 5) {
            let (from, to) = (self.place((self.x.0, y)), self.place((self.x.1, y)));
            drawing.rule(from, to, Ink::Grid);
            drawing.words(short(y), (from.0 - 6.0, from.1 + 4.0), 11.0, Anchor::End, Ink::Muted);
        }
    }

    /// The lines upwards, what stands below them, and what the horizontal axis is.
    fn draw_x(
        &self,
        drawing: &mut Drawing,
        label: &str,
        marks: impl Iterator<Item = (f64, impl ToString)>,
    ) {
        for (x, mark) in marks {
            let (from, to) = (self.place((x, self.y.0)), self.place((x, self.y.1)));
            drawing.rule(from, to, Ink::Grid);
            let at = (from.0, from.1 + 15.0);
            drawing.words(mark.to_string(), at, 11.0, Anchor::Middle, Ink::Muted);
        }
        let at = (SIZE.0 - ROOM.2, SIZE.1 - 6.0);
        drawing.words(label, at, 11.0, Anchor::End, Ink::Muted);
    }
}

/// At most `count` round numbers from `low` to `high`, a step of 1, 2 or 5 times a power of ten apart.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count as f64;
    if !(rough > 0.0 && rough.is_finite()) {
        return vec![low];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = step.into_iter().find(|&step| step >= rough * 0.999).unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|multiple| multiple as f64 * step).collect()
}

/// A number as short as it can be told.
pub fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs();
    if !(1e-3..1e5).contains(&magnitude) {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let decimals = (2.0 - magnitude.log10().floor()).clamp(0.0, 5.0) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(ticks(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(3.0, 17.0, 4), [5.0, 10.0, 15.0]);
        assert_eq!(ticks(1.0, 1.0, 4), [1.0]);
        let shorts = [0.05, 0.6000000000000001, 2.5, 1234.0, 1e-5, 0.0].map(short);
        assert_eq!(shorts, ["0.05", "0.6", "2.5", "1234", "1e-5", "0"]);
    }

    #[test]
    fn curves_of_nothing_and_of_one_point_can_be_drawn() {
        let curve = |points: Vec<(f64, f64)>| Curve {
            name: "loss".into(),
            points,
            ink: Ink::Series(0),
            faint: false,
        };
        for points in [vec![], vec![(1.0, f64::NAN)], vec![(1.0, 0.0)], vec![(0.0, 3.0)]] {
            let drawing = curves("Loss", "epoch", true, &[curve(points)]);
            let svg = drawing.svg("loss");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert_eq!(drawing.pixels(1.0).dimensions(), (430, 270));
        }
        let many: Vec<_> = (0..10_000).map(|x| (f64::from(x), 1.0)).collect();
        assert!(curve(many).thinned().points.len() <= POINTS);
    }
}
