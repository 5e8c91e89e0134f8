//! Boxes, lines and words on a plane: described once, written as SVG for the page and as pixels for
//! the files. Lengths are in CSS pixels.

use std::fmt::Write;

/// What something is drawn in: a name, so that the page can be light or dark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// The ground.
    Paper,
    /// Words and numbers.
    Text,
    /// Words of less weight.
    Muted,
    /// Lines that only guide the eye.
    Grid,
    /// Something right.
    Right,
    /// Something wrong.
    Wrong,
    /// One of several curves; they repeat after the sixth.
    Series(usize),
}

/// Name, colour on light ground, colour on dark ground. Text, muted, right and wrong have a contrast
/// of 4.5 : 1 at least with the ground, as WCAG AA asks; curves 3 : 1.
const INKS: [(&str, [u8; 3], [u8; 3]); 12] = [
    ("paper", [255, 255, 255], [22, 24, 29]),
    ("text", [28, 31, 36], [232, 234, 238]),
    ("muted", [91, 98, 110], [160, 167, 180]),
    ("grid", [218, 222, 228], [58, 63, 73]),
    ("right", [20, 112, 62], [111, 211, 155]),
    ("wrong", [180, 35, 35], [255, 138, 128]),
    ("series-0", [31, 95, 184], [127, 178, 255]),
    ("series-1", [190, 86, 10], [255, 176, 102]),
    ("series-2", [20, 122, 80], [111, 211, 155]),
    ("series-3", [122, 63, 181], [201, 162, 255]),
    ("series-4", [173, 39, 97], [255, 150, 192]),
    ("series-5", [14, 116, 130], [103, 214, 228]),
];

impl Ink {
    fn index(self) -> usize {
        match self {
            Self::Paper => 0,
            Self::Text => 1,
            Self::Muted => 2,
            Self::Grid => 3,
            Self::Right => 4,
            Self::Wrong => 5,
            Self::Series(index) => 6 + index % 6,
        }
    }

    /// The name of its variable in the page's style.
    pub fn name(self) -> &'static str {
        INKS[self.index()].0
    }

    /// Its colour on light ground.
    pub fn rgb(self) -> [u8; 3] {
        INKS[self.index()].1
    }
}

/// The variables of all inks, for light or for dark ground.
pub fn css_variables(dark: bool) -> String {
    let mut css = String::new();
    for (name, on_light, on_dark) in INKS {
        let [r, g, b] = if dark { on_dark } else { on_light };
        let _ = write!(css, "--{name}:#{r:02x}{g:02x}{b:02x};");
    }
    css
}

/// Which part of a word is at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The beginning.
    Start,
    /// The middle.
    Middle,
    /// The end.
    End,
}

/// A line of words.
#[derive(Clone, Debug, PartialEq)]
pub struct Words {
    /// What they say.
    pub text: String,
    /// Where: the anchor's place on the baseline.
    pub at: (f64, f64),
    /// Height of the font.
    pub size: f64,
    /// Which part is there.
    pub anchor: Anchor,
    /// In what.
    pub ink: Ink,
    /// Whether they run upwards.
    pub upwards: bool,
}

/// Something drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// A filled box.
    Box {
        /// Left, top.
        at: (f64, f64),
        /// Width, height.
        size: (f64, f64),
        /// In what.
        ink: Ink,
        /// 0 to 1.
        opacity: f64,
        /// What it stands for, shown to who points at it; may be empty.
        title: String,
    },
    /// A line through points.
    Line {
        /// Where.
        points: Vec<(f64, f64)>,
        /// How thick.
        width: f64,
        /// In what.
        ink: Ink,
        /// 0 to 1.
        opacity: f64,
    },
    /// A filled circle.
    Dot {
        /// Its middle.
        at: (f64, f64),
        /// Its radius.
        radius: f64,
        /// In what.
        ink: Ink,
        /// What it stands for; may be empty.
        title: String,
    },
    /// Words.
    Words(Words),
}

/// A drawing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawing {
    /// Width, height.
    pub size: (f64, f64),
    /// What is drawn, the first undermost.
    pub shapes: Vec<Shape>,
}

impl Drawing {
    /// Nothing yet on a ground of this width and height.
    pub fn new(width: f64, height: f64) -> Self {
        Self { size: (width, height), shapes: Vec::new() }
    }

    /// Adds words.
    pub fn words(
        &mut self,
        text: impl Into<String>,
        at: (f64, f64),
        size: f64,
        anchor: Anchor,
        ink: Ink,
    ) {
        let text = text.into();
        self.shapes.push(Shape::Words(Words { text, at, size, anchor, ink, upwards: false }));
    }

    /// Adds a thin line.
    pub fn rule(&mut self, from: (f64, f64), to: (f64, f64), ink: Ink) {
        let points = vec![from, to];
        self.shapes.push(Shape::Line { points, width: 1.0, ink, opacity: 1.0 });
    }

    /// Puts `other` with its left top corner at `(x, y)`, and grows to hold it.
    pub fn place(&mut self, other: &Self, x: f64, y: f64) {
        let moved = |(px, py): (f64, f64)| (px + x, py + y);
        for shape in &other.shapes {
            let mut shape = shape.clone();
            match &mut shape {
                Shape::Box { at, .. } | Shape::Dot { at, .. } => *at = moved(*at),
                Shape::Line { points, .. } => {
                    points.iter_mut().for_each(|point| *point = moved(*point));
                }
                Shape::Words(words) => words.at = moved(words.at),
            }
            self.shapes.push(shape);
        }
        self.size = (self.size.0.max(x + other.size.0), self.size.1.max(y + other.size.1));
    }

    /// As an `<svg>` element that `label` describes to who cannot see it.
    pub fn svg(&self, label: &str) -> String {
        let (width, height) = self.size;
        let mut svg = format!(
            "<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             style=\"width:{width:.0}px\">",
            escape(label)
        );
        for shape in &self.shapes {
            shape.svg(&mut svg);
        }
        svg + "</svg>"
    }
}

impl Shape {
    fn svg(&self, svg: &mut String) {
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Box { at: (x, y), size: (w, h), ink, opacity, title } => write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" \
                 style=\"fill:var(--{});fill-opacity:{opacity:.3}\">{}</rect>",
                ink.name(),
                title_element(title)
            ),
            Self::Line { points, width, ink, opacity } => {
                let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                write!(
                    svg,
                    "<polyline points=\"{}\" style=\"fill:none;stroke:var(--{});\
                     stroke-width:{width};stroke-opacity:{opacity:.3};stroke-linejoin:round\"/>",
                    points.join(" "),
                    ink.name()
                )
            }
            Self::Dot { at: (x, y), radius, ink, title } => write!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" style=\"fill:var(--{})\">{}\
                 </circle>",
                ink.name(),
                title_element(title)
            ),
            Self::Words(words) => {
                let (x, y) = words.at;
                let anchor = match words.anchor {
                    Anchor::Start => "start",
                    Anchor::Middle => "middle",
                    Anchor::End => "end",
                };
                let turn = match words.upwards {
                    true => format!(" transform=\"rotate(-90 {x:.1} {y:.1})\""),
                    false => String::new(),
                };
                write!(
                    svg,
                    "<text x=\"{x:.1}\" y=\"{y:.1}\"{turn} style=\"fill:var(--{});font-size:{}px;\
                     text-anchor:{anchor}\">{}</text>",
                    words.ink.name(),
                    words.size,
                    escape(&words.text)
                )
            }
        };
    }
}

fn title_element(title: &str) -> String {
    match title.is_empty() {
        true => String::new(),
        false => format!("<title>{}</title>", escape(title)),
    }
}

/// `text` as it may stand in an element or in quotes of an attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // No XML may hold the others.
            '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// `text` cut to `length` characters.
pub fn shortened(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("<b>&\"'\u{1}ß"), "&lt;b&gt;&amp;&quot;&#39;\u{fffd}ß");
        assert_eq!(shortened("ants", 4), "ants");
        assert_eq!(shortened("hymenoptera", 4), "hym…");
    }

    #[test]
    fn inks_can_be_told_from_the_ground() {
        // WCAG's relative luminance and contrast.
        let luminance = |rgb: [u8; 3]| {
            let linear = rgb.map(|value| match f64::from(value) / 255.0 {
                small if small <= 0.04045 => small / 12.92,
                value => ((value + 0.055) / 1.055).powf(2.4),
            });
            0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        };
        let contrast = |a: [u8; 3], b: [u8; 3]| {
            let (a, b) = (luminance(a), luminance(b));
            (a.max(b) + 0.05) / (a.min(b) + 0.05)
        };
        for (name, on_light, on_dark) in INKS {
            let least = match name {
                "paper" | "grid" => 1.0,
                "text" | "muted" | "right" | "wrong" => 4.5,
                _ => 3.0,
            };
            let found = contrast(on_light, INKS[0].1).min(contrast(on_dark, INKS[0].2));
            assert!(found >= least, "{name}: {found}");
        }
    }
}
