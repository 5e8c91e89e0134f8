//! The confusion matrix as a picture: every class's row, darker where more of its images went.

use super::drawing::{Anchor, Drawing, Ink, Shape, Words, shortened};
use crate::metrics::Metrics;

/// As many classes can be named along the edges.
const NAMED: usize = 30;
/// Of more classes, those with the most mistakes are shown by themselves.
const WORST: usize = 20;
/// Characters of a class's name.
const NAME: usize = 16;
/// Width of a character of the names, at most.
const CHARACTER: f64 = 6.8;
/// The column of all classes that have none.
const OTHERS: &str = "all others";
/// Side of the picture of all classes where they are not named.
const OVERVIEW: f64 = 480.0;

/// Up to 30 classes: all of them, the least recalled first, with counts and shares of the rows. More:
/// the twenty with the most mistakes so, and all of them without names.
pub fn confusion(metrics: &Metrics, classes: &[String]) -> Vec<(String, Drawing)> {
    let recall: Vec<f64> = metrics.per_class().iter().map(|class| class.recall).collect();
    let mut order: Vec<usize> = (0..classes.len()).collect();
    order.sort_by(|&a, &b| recall[a].total_cmp(&recall[b]));
    if classes.len() <= NAMED {
        let title = "rows: what the images were; columns: what they were taken for";
        return vec![(title.into(), named(metrics, classes, &order))];
    }
    let mut worst = order.clone();
    worst.sort_by_key(|&class| std::cmp::Reverse(mistakes(metrics, class)));
    worst.truncate(WORST);
    let all = overview(metrics, classes, &order);
    vec![
        (format!("the {WORST} classes with the most mistakes"), named(metrics, classes, &worst)),
        (format!("all {} classes, the least recalled first", classes.len()), all),
    ]
}

/// One picture of [`confusion`]'s, for a file.
pub fn confusion_picture(metrics: &Metrics, classes: &[String]) -> Drawing {
    let mut picture = Drawing::default();
    for (title, drawing) in confusion(metrics, classes) {
        let top = picture.size.1 + 24.0;
        picture.words(title, (12.0, top), 11.0, Anchor::Start, Ink::Muted);
        picture.place(&drawing, 8.0, top + 8.0);
    }
    let (width, height) = picture.size;
    // The headings are as wide as glyphs in a row.
    picture.size = ((width + 12.0).max(460.0), height + 12.0);
    picture
}

/// Images of a class that were taken for another, and of others that were taken for it.
fn mistakes(metrics: &Metrics, class: usize) -> u64 {
    let row: u64 = metrics.confusion[class].iter().sum();
    let column: u64 = metrics.confusion.iter().map(|row| row[class]).sum();
    row + column - 2 * metrics.confusion[class][class]
}

/// How strong the colour of a share of a row is: small shares must be seen, and words be readable on
/// the largest, on light and on dark ground.
fn strength(share: f64) -> f64 {
    0.06 + 0.42 * share
}

fn title(classes: &[String], actual: usize, predicted: &str, count: u64, share: f64) -> String {
    let images = if count == 1 { "image" } else { "images" };
    format!(
        "{count} {images} of {} taken for {predicted}: {:.1} % of the row",
        classes[actual],
        100.0 * share
    )
}

/// The rows and columns of some classes, named; images taken for none of them have a column.
fn named(metrics: &Metrics, classes: &[String], shown: &[usize]) -> Drawing {
    let others = shown.len() < classes.len();
    let columns = shown.len() + usize::from(others);
    let cell = match shown.len() {
        0..=4 => 64.0,
        5..=12 => 44.0,
        _ => 32.0,
    };
    let names = shown.iter().map(|&class| classes[class].chars().count().min(NAME));
    let least = if others { OTHERS.len() } else { 0 };
    let room = 14.0 + CHARACTER * names.max().unwrap_or(0).max(least) as f64;
    let mut drawing = Drawing::new(room + columns as f64 * cell + 4.0, room);
    for (column, &class) in shown.iter().enumerate() {
        let x = room + (column as f64 + 0.5) * cell + 4.0;
        drawing.shapes.push(column_name(&shortened(&classes[class], NAME), x, room));
    }
    if others {
        let x = room + (columns as f64 - 0.5) * cell + 4.0;
        drawing.shapes.push(column_name(OTHERS, x, room));
    }
    for (line, &actual) in shown.iter().enumerate() {
        let row = &metrics.confusion[actual];
        let total: u64 = row.iter().sum();
        let y = room + line as f64 * cell;
        let name = shortened(&classes[actual], NAME);
        drawing.words(name, (room - 6.0, y + cell / 2.0 + 4.0), 11.0, Anchor::End, Ink::Text);
        let mut counts: Vec<u64> = shown.iter().map(|&predicted| row[predicted]).collect();
        if others {
            counts.push(total - counts.iter().sum::<u64>());
        }
        for (column, count) in counts.into_iter().enumerate() {
            let share = if total > 0 { count as f64 / total as f64 } else { 0.0 };
            let predicted = shown.get(column).copied();
            let name = predicted.map_or("any other class", |class| classes[class].as_str());
            let ink = match predicted == Some(actual) {
                true => Ink::Series(0),
                false => Ink::Series(1),
            };
            let x = room + column as f64 * cell;
            drawing.shapes.push(Shape::Box {
                at: (x, y),
                size: (cell - 1.0, cell - 1.0),
                ink: Ink::Grid,
                opacity: 0.35,
                title: title(classes, actual, name, count, share),
            });
            if count == 0 {
                continue;
            }
            drawing.shapes.push(Shape::Box {
                at: (x, y),
                size: (cell - 1.0, cell - 1.0),
                ink,
                opacity: strength(share),
                title: title(classes, actual, name, count, share),
            });
            let middle = x + cell / 2.0;
            let has_share = cell > 40.0;
            let up = if has_share { 2.0 } else { -4.0 };
            let at = (middle, y + cell / 2.0 - up);
            drawing.words(count.to_string(), at, 11.0, Anchor::Middle, Ink::Text);
            if has_share {
                let at = (middle, y + cell / 2.0 + 13.0);
                drawing.words(
                    format!("{:.0}%", 100.0 * share),
                    at,
                    11.0,
                    Anchor::Middle,
                    Ink::Text,
                );
            }
        }
    }
    drawing.size.1 = room + shown.len() as f64 * cell + 4.0;
    drawing
}

fn column_name(name: &str, x: f64, room: f64) -> Shape {
    Shape::Words(Words {
        text: name.into(),
        at: (x, room - 6.0),
        size: 11.0,
        anchor: Anchor::Start,
        ink: Ink::Text,
        upwards: true,
    })
}

/// All classes, unnamed.
fn overview(metrics: &Metrics, classes: &[String], order: &[usize]) -> Drawing {
    let cell = OVERVIEW / order.len() as f64;
    let mut drawing = Drawing::new(OVERVIEW + 2.0, OVERVIEW + 2.0);
    let at = (1.0, 1.0);
    let (size, text) = ((OVERVIEW, OVERVIEW), String::new());
    drawing.shapes.push(Shape::Box { at, size, ink: Ink::Grid, opacity: 0.35, title: text });
    for (line, &actual) in order.iter().enumerate() {
        let total: u64 = metrics.confusion[actual].iter().sum();
        for (column, &predicted) in order.iter().enumerate() {
            let count = metrics.confusion[actual][predicted];
            if count == 0 {
                continue;
            }
            let share = count as f64 / total as f64;
            drawing.shapes.push(Shape::Box {
                at: (1.0 + column as f64 * cell, 1.0 + line as f64 * cell),
                size: (cell, cell),
                ink: if predicted == actual { Ink::Series(0) } else { Ink::Series(1) },
                opacity: 0.2 + 0.8 * share,
                title: title(classes, actual, &classes[predicted], count, share),
            });
        }
    }
    drawing
}
