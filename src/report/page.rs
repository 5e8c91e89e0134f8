//! `report.html`: one file that needs nothing else, not even a network.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use serde_json::Value;

use super::drawing::{Drawing, css_variables, escape};
use super::history::Row;
use super::{Example, Judged, Report, Standing, chart, jpeg, matrix};
use crate::metrics::{Answered, Average};

/// Seconds after which the page of a run that goes on looks again.
const REFRESH: u32 = 10;
/// What stands before how the run stands.
const STANDING: &str = "<p id=\"standing\">";
const STYLE: &str = include_str!("page.css");

impl Standing {
    /// What makes the page look again, if it has to.
    fn refresh(&self) -> String {
        match self {
            Self::UnderWay => {
                format!("<meta http-equiv=\"refresh\" content=\"{REFRESH}\"/>\n")
            }
            _ => String::new(),
        }
    }

    /// How a run of `epochs` epochs stands after the first `done`.
    fn sentence(&self, done: u32, epochs: u32) -> String {
        match self {
            Self::UnderWay => format!(
                "Under way: {done} of {epochs} epochs done. The page looks again every {REFRESH} \
                 seconds."
            ),
            Self::Finished => format!("Finished after {done} of {epochs} epochs."),
            Self::Stopped(why) => format!("{why} The page shows {done} of {epochs} epochs."),
        }
    }
}

/// `page`, that of a run under way, for one that stands as `standing` says.
pub(super) fn restated(page: &str, standing: &Standing, done: u32, epochs: u32) -> String {
    let page = page.replacen(&Standing::UnderWay.refresh(), &standing.refresh(), 1);
    let Some((before, rest)) = page.split_once(STANDING) else { return page };
    let (_, after) = rest.split_once("</p>").unwrap_or_default();
    format!("{before}{STANDING}{}</p>{after}", escape(&standing.sentence(done, epochs)))
}

impl Report<'_> {
    /// The page; `charts` are loss, accuracy and learning rate.
    pub(super) fn page(&self, charts: &[Drawing; 3]) -> String {
        let title = format!("wgrad {}: {}", text_of(&self.args["command"]), self.data());
        let refresh = self.standing.refresh();
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n{refresh}\
             <link rel=\"icon\" href=\"data:,\"/>\n<title>{}</title>\n<style>\n:root{{{}}}\n\
             @media (prefers-color-scheme: dark){{:root{{{}}}}}\n{STYLE}</style>\n</head>\n<body>\n\
             <main>\n<h1>{}</h1>\n",
            escape(&title),
            css_variables(false),
            css_variables(true),
            escape(&title)
        );
        self.summary(&mut page);
        self.curves(&mut page, charts);
        if let Some(judged) = &self.judged {
            self.confusion(&mut page, judged);
            self.confused_pairs(&mut page, judged);
            self.top_losses(&mut page, judged);
            self.heat(&mut page, judged);
            self.classes(&mut page, judged);
            calibration(&mut page, judged);
        }
        self.time(&mut page);
        self.options(&mut page);
        page += "</main>\n</body>\n</html>\n";
        page
    }

    fn data(&self) -> String {
        let data = text_of(&self.args["data"]);
        let name = data.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next();
        name.unwrap_or(&data).to_owned()
    }

    /// What was run on what, and how it went, at a glance.
    fn summary(&self, page: &mut String) {
        let done = self.history.epochs.len() as u32;
        let adapter = &self.args["adapter"];
        let _ = write!(
            page,
            "{STANDING}{}</p>\n<p>{}</p>\n",
            escape(&self.standing.sentence(done, self.epochs)),
            escape(&format!(
                "{} from the weights {}, {} px, {} classes, on {} ({}, {}).",
                text_of(&self.args["arch"]),
                text_of(&self.args["weights"]),
                text_of(&self.args["image_size"]),
                self.classes.len(),
                text_of(&adapter["name"]),
                text_of(&adapter["backend"]),
                text_of(&adapter["driver"])
            ))
        );
        let mut figures = Vec::new();
        let best = self.history.epochs.iter().find(|row| Some(row.epoch) == self.best);
        if let Some(best) = best.filter(|row| row.val_top1.is_finite()) {
            figures.push((format!("best Acc@1, epoch {}", best.epoch), percent(best.val_top1)));
            figures.push(("its validation loss".into(), chart::short(best.val_loss)));
        }
        if let Some(judged) = &self.judged {
            let ece = judged.metrics.calibration().ece;
            figures.push(("macro F1".into(), format!("{:.3}", judged.metrics.macro_average().f1)));
            figures.push(("calibration error".into(), percent(ece)));
        }
        let validated = self.judged.as_ref().map_or(0, |judged| judged.metrics.images);
        figures.push(("images: train, val".into(), format!("{}, {validated}", self.train_images)));
        if let Some(last) = self.history.epochs.last() {
            figures.push(("time".into(), duration(last.time)));
            let rate = format!("{:.0} img/s", last.images_per_second);
            figures.push(("training".into(), rate));
        }
        if self.memory_bytes > 0 {
            let memory = format!("{:.0} MB", self.memory_bytes as f64 / 1e6);
            figures.push(("device memory".into(), memory));
        }
        *page += "<dl class=\"figures\">";
        for (name, value) in figures {
            let _ =
                write!(page, "<div><dt>{}</dt><dd>{}</dd></div>", escape(&name), escape(&value));
        }
        *page += "</dl>\n";
    }

    fn curves(&self, page: &mut String, charts: &[Drawing; 3]) {
        *page += "<h2>Curves</h2>\n<div class=\"charts\">\n";
        let last = self.history.epochs.last();
        let labels = [
            last.map(|row| {
                format!(
                    "Loss: training {}, validation {}",
                    chart::short(row.train_loss),
                    number(row.val_loss)
                )
            }),
            last.map(|row| {
                let (train, val) = (percent(row.train_top1), percent(row.val_top1));
                format!("Accuracy: training {train}, validation {val}")
            }),
            last.map(|_| "Learning rate of each step".into()),
        ];
        for (drawing, label) in charts.iter().zip(labels) {
            *page += &drawing.svg(&label.unwrap_or_else(|| "Nothing measured yet".into()));
            *page += "\n";
        }
        *page += "</div>\n";
    }

    fn confusion(&self, page: &mut String, judged: &Judged) {
        let right = judged.metrics.answers.iter().filter(|answer| answer.is_right()).count();
        let _ = write!(
            page,
            "<h2>Confusion matrix</h2>\n<p>After epoch {}: {right} of {} validation images right. \
             A row is what images were, a column what they were taken for, with the share of the \
             row.</p>\n",
            judged.epoch, judged.metrics.images
        );
        let pictures = matrix::confusion(judged.metrics, self.classes);
        let alone = pictures.len() == 1;
        for (title, drawing) in pictures {
            if !alone {
                let _ = writeln!(page, "<h3>{}</h3>", escape(&capitalised(&title)));
            }
            let label = format!("Confusion matrix, {title}");
            region(page, "whole", &label, &drawing.svg(&label));
        }
    }

    fn confused_pairs(&self, page: &mut String, judged: &Judged) {
        if judged.shown.confused.is_empty() {
            return;
        }
        *page += "<h2>Most confused</h2>\n";
        for examples in &judged.shown.confused {
            let Some(Example { answer: Answered { label, predicted, .. }, .. }) = examples.first()
            else {
                continue;
            };
            let (count, total) = (
                judged.metrics.confusion[*label][*predicted],
                judged.metrics.confusion[*label].iter().sum::<u64>(),
            );
            let _ = writeln!(
                page,
                "<h3>{} taken for {}: {count} of {total}</h3>\n<div class=\"images\">",
                escape(&self.classes[*label]),
                escape(&self.classes[*predicted])
            );
            examples.iter().for_each(|example| self.figure(page, example, false));
            *page += "</div>\n";
        }
    }

    fn top_losses(&self, page: &mut String, judged: &Judged) {
        if judged.shown.losses.is_empty() {
            return;
        }
        *page += "<h2>Top losses</h2>\n<p>The validation images that surprised the network most: look \
                  for wrong labels here first.</p>\n<div class=\"images\">\n";
        judged.shown.losses.iter().for_each(|example| self.figure(page, example, false));
        *page += "</div>\n";
    }

    fn heat(&self, page: &mut String, judged: &Judged) {
        let wrong = |example: &&Example| !example.answer.is_right();
        let heated = &judged.shown.heated;
        if heated.is_empty() {
            return;
        }
        *page += "<h2>What it looked at</h2>\n<p>Grad-CAM: bright is where the image spoke for the \
                  class that it was taken for.</p>\n";
        let right: Vec<_> = heated.iter().filter(|example| !wrong(example)).collect();
        let wrong: Vec<_> = heated.iter().filter(wrong).collect();
        for (title, examples) in [("Wrong answers", wrong), ("Right answers", right)] {
            if !examples.is_empty() {
                let _ = writeln!(page, "<h3>{title}</h3>\n<div class=\"images wide\">");
                examples.iter().for_each(|example| self.figure(page, example, true));
                *page += "</div>\n";
            }
        }
    }

    /// An image with the answer to it; with heat beside it.
    fn figure(&self, page: &mut String, example: &Example, heat: bool) {
        let Answered { label, predicted, confidence, probability, loss, .. } = example.answer;
        let (truth, guess) = (&self.classes[label], &self.classes[predicted]);
        let mut images =
            img(&example.image, &format!("{}: {truth}, taken for {guess}", example.name));
        if let Some(hot) = example.heat.as_ref().filter(|_| heat) {
            let alt = format!("{}: what speaks for {guess}", example.name);
            images = format!("<div class=\"pair\">{images}{}</div>", img(hot, &alt));
        }
        let mut caption = match example.answer.is_right() {
            true => {
                format!("<span class=\"right\">{} {}</span>", escape(truth), percent(confidence))
            }
            false => format!(
                "{} {}<br/><span class=\"wrong\">taken for {} {}</span>",
                escape(truth),
                percent(probability),
                escape(guess),
                percent(confidence)
            ),
        };
        let _ = write!(
            caption,
            "<br/><small>loss {} · {}</small>",
            chart::short(loss),
            escape(&example.name)
        );
        let _ = writeln!(page, "<figure>{images}<figcaption>{caption}</figcaption></figure>");
    }

    fn classes(&self, page: &mut String, judged: &Judged) {
        let metrics = judged.metrics;
        let per_class = metrics.per_class();
        let mut order: Vec<usize> = (0..self.classes.len()).collect();
        order.sort_by(|&a, &b| per_class[a].f1.total_cmp(&per_class[b].f1));
        let mut table = String::from(
            "<table><thead><tr><th scope=\"col\">class</th><th scope=\"col\">images</th>\
             <th scope=\"col\">precision</th><th scope=\"col\">recall</th><th scope=\"col\">F1</th>\
             </tr></thead><tbody>",
        );
        let mut row = |name: &str, images: u64, of: Average| {
            let _ = write!(
                table,
                "<tr><th scope=\"row\">{}</th><td>{images}</td><td>{:.3}</td><td>{:.3}</td>\
                 <td>{:.3}</td></tr>",
                escape(name),
                of.precision,
                of.recall,
                of.f1
            );
        };
        row("all, each class alike (macro)", metrics.images, metrics.macro_average());
        row("all, by images (weighted)", metrics.images, metrics.weighted_average());
        for class in order {
            let of = &per_class[class];
            let (precision, recall, f1) = (of.precision, of.recall, of.f1);
            row(&self.classes[class], of.images, Average { precision, recall, f1 });
        }
        table += "</tbody></table>";
        *page += "<h2>Classes</h2>\n<p>The worst F1 first.</p>\n";
        region(page, "", "Precision, recall and F1 of each class", &table);
    }

    fn time(&self, page: &mut String) {
        *page += "<h2>Time and memory</h2>\n";
        let _ = writeln!(
            page,
            "<p>Device memory at the end of the latest epoch: {:.0} MB.</p>",
            self.memory_bytes as f64 / 1e6
        );
        let mut table = String::from(
            "<table><thead><tr><th scope=\"col\">epoch</th><th scope=\"col\">done after</th>\
             <th scope=\"col\">img/s</th><th scope=\"col\">train loss</th>\
             <th scope=\"col\">train Acc@1</th><th scope=\"col\">val loss</th>\
             <th scope=\"col\">val Acc@1</th><th scope=\"col\">val Acc@5</th></tr></thead><tbody>",
        );
        for row in &self.history.epochs {
            let Row { epoch, time, images_per_second, .. } = row;
            let _ = write!(
                table,
                "<tr><th scope=\"row\">{epoch}</th><td>{}</td><td>{images_per_second:.0}</td><td>{}\
                 </td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                duration(*time),
                number(row.train_loss),
                percent(row.train_top1),
                number(row.val_loss),
                percent(row.val_top1),
                percent(row.val_top5)
            );
        }
        table += "</tbody></table>";
        region(page, "", "Every epoch", &table);
    }

    /// `args.json`, to be unfolded.
    fn options(&self, page: &mut String) {
        *page += "<h2>Options</h2>\n<details><summary>every option as resolved, and what ran \
                  it</summary>\n<table class=\"facts\"><tbody>";
        for (name, value) in self.args.as_object().into_iter().flatten() {
            let value = match value {
                Value::Array(values) if values.len() > 30 => format!("{} entries", values.len()),
                value => text_of(value),
            };
            let _ = write!(
                page,
                "<tr><th scope=\"row\">{}</th><td>{}</td></tr>",
                escape(name),
                escape(&value)
            );
        }
        *page += "</tbody></table></details>\n";
    }
}

fn calibration(page: &mut String, judged: &Judged) {
    let calibration = judged.metrics.calibration();
    let label = format!(
        "Share of right answers by confidence; expected calibration error {}",
        percent(calibration.ece)
    );
    let _ = write!(
        page,
        "<h2>Calibration</h2>\n<p>Where bars end on the diagonal the network is right as often as it \
         says. <code>wgrad evaluate --temperature fit</code> finds what would correct it.</p>\n\
         <div class=\"charts\">{}</div>\n",
        chart::reliability(&calibration).svg(&label)
    );
}

/// A part of the page that scrolls by itself, by touch and by keys.
fn region(page: &mut String, class: &str, label: &str, content: &str) {
    let _ = writeln!(
        page,
        "<div class=\"scroll {class}\" tabindex=\"0\" role=\"region\" aria-label=\"{}\">{content}\
         </div>",
        escape(label)
    );
}

fn img(image: &RgbImage, alt: &str) -> String {
    format!(
        "<img src=\"data:image/jpeg;base64,{}\" width=\"{}\" height=\"{}\" alt=\"{}\"/>",
        STANDARD.encode(jpeg(image)),
        image.width(),
        image.height(),
        escape(alt)
    )
}

/// A string without its quotes; anything else as JSON.
fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    first.collect::<String>() + characters.as_str()
}

fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", 100.0 * share) } else { "–".into() }
}

fn number(value: f64) -> String {
    if value.is_finite() { chart::short(value) } else { "–".into() }
}

fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, Tally};
    use crate::report::{History, Shown};
    use image::Rgb;
    use serde_json::json;

    const ROW: Row = Row {
        epoch: 1,
        time: 61.0,
        train_loss: 0.5,
        train_top1: 0.75,
        val_loss: 0.25,
        val_top1: 0.5,
        val_top5: 1.0,
        images_per_second: 80.0,
    };

    /// Checks that every element is closed where it should be, that attributes are quoted, and that
    /// nothing is fetched; returns all text.
    fn check(page: &str) -> String {
        let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a document type");
        let (mut open, mut text) = (Vec::new(), String::new());
        while let Some(start) = rest.find('<') {
            text += &rest[..start];
            rest = &rest[start + 1..];
            let mut quoted = false;
            let ends = |character: char| {
                quoted ^= character == '"';
                assert!(character != '<', "< within a tag: {}", &rest[..40.min(rest.len())]);
                character == '>' && !quoted
            };
            let end = rest.find(ends).expect("a tag ends");
            let tag = &rest[..end];
            rest = &rest[end + 1..];
            let name: String = tag.chars().take_while(|&c| !" />".contains(c)).collect();
            if let Some(closed) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(closed), "closed out of order");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
            for (name, value) in attributes(tag) {
                match name {
                    "src" | "href" => assert!(value.starts_with("data:"), "{name}={value}"),
                    "alt" | "aria-label" => assert!(!value.is_empty(), "{name} of {tag:.60}"),
                    _ => {}
                }
                assert!(!value.contains("url(") && !name.starts_with("on"), "{name}={value}");
            }
            assert!(!tag.starts_with("img") || tag.contains(" alt=\""), "an image without words");
        }
        assert!(open.is_empty(), "not closed: {open:?}");
        assert!(!page.contains("http:") && !page.contains("https:"), "an address");
        assert!(!page.contains("@import") && !page.contains("<script"));
        text + rest
    }

    fn attributes(tag: &str) -> Vec<(&str, &str)> {
        let parts: Vec<&str> = tag.split('"').collect();
        let name =
            |text: &'_ str| text.trim_end_matches('=').rsplit(' ').next().unwrap_or("").len();
        parts
            .chunks_exact(2)
            .map(|pair| {
                let key = pair[0].trim_end_matches('=');
                (&key[key.len() - name(pair[0])..], pair[1])
            })
            .collect()
    }

    fn page(
        classes: &[&str],
        metrics: Option<&Metrics>,
        epochs: Vec<Row>,
        standing: Standing,
    ) -> String {
        let classes: Vec<String> = classes.iter().map(|&class| class.to_owned()).collect();
        let args = json!({
            "command": "finetune", "data": "my/<i>data", "weights": "bundled", "arch": "resnet18",
            "image_size": 64, "classes": classes,
            "adapter": {"name": "a & b", "backend": "vulkan", "driver": "1.0"},
        });
        let image = RgbImage::from_pixel(8, 8, Rgb([90; 3]));
        let example = |answer: &Answered| Example {
            image: image.clone(),
            heat: Some(image.clone()),
            name: "<\"'>.png".into(),
            answer: *answer,
        };
        let examples: Vec<Example> =
            metrics.iter().flat_map(|metrics| &metrics.answers).map(example).collect();
        let wrong = |example: &&Example| !example.answer.is_right();
        let wrong: Vec<Example> = examples.iter().filter(wrong).cloned().collect();
        let shown = Shown {
            confused: if wrong.is_empty() { vec![] } else { vec![wrong] },
            losses: examples.clone(),
            sample: examples.clone(),
            heated: examples,
        };
        let history = History { epochs, steps: vec![] };
        let report = Report {
            args: &args,
            classes: &classes,
            history: &history,
            epochs: 2,
            train_images: 10,
            standing,
            best: Some(1),
            memory_bytes: 1_000_000,
            judged: metrics.map(|metrics| Judged { epoch: 1, metrics, shown: &shown }),
        };
        let folder = tempfile::tempdir().unwrap();
        report.write(folder.path()).unwrap();
        for name in ["results.png", "confusion_matrix.png", "val_predictions.jpg"] {
            let path = folder.path().join(name);
            let expected = name == "results.png" || metrics.is_some_and(|it| it.images > 0);
            assert!(path.exists() || !expected, "{name}");
            if path.exists() {
                let (width, height) = crate::data::decode(&path).unwrap().dimensions();
                assert!(width > 100 && height > 100, "{name}: {width}×{height}");
            }
        }
        std::fs::read_to_string(folder.path().join("report.html")).unwrap()
    }

    /// Image i is of class i, and the logit of class (i + off) is the largest.
    fn metrics(classes: usize, images: usize, off: usize) -> Metrics {
        let mut tally = Tally::new(classes);
        for item in 0..images {
            let mut logits = vec![0.0; classes];
            logits[(item + off) % classes] = 2.0;
            tally.add(&logits, &[(item % classes) as u32], &[item]);
        }
        tally.metrics()
    }

    #[test]
    fn the_page_is_whole_and_fetches_nothing() {
        let names = ["<b>&\"", "'ö\u{0}", "</main>"];
        for (images, off) in [(3, 1), (1, 0), (1, 1), (0, 0), (40, 1)] {
            for standing in [Standing::UnderWay, Standing::Finished, Standing::Stopped("x<".into())]
            {
                let metrics = metrics(3, images, off);
                let page = page(&names, Some(&metrics), vec![ROW], standing.clone());
                // Whatever a page said, it says in the end what one drawn anew would.
                let under_way = self::page(&names, Some(&metrics), vec![ROW], Standing::UnderWay);
                assert_eq!(restated(&under_way, &standing, 1, 2), page);
                let text = check(&page);
                assert!(text.contains("&lt;b&gt;&amp;&quot;"), "the class's name is told");
                assert!(!page.contains("<b>") && !page.contains("<i>"));
                let refreshes = page.contains("http-equiv=\"refresh\"");
                assert_eq!(refreshes, standing == Standing::UnderWay);
                assert!(!page.contains("NaN") || images == 0, "{text}");
            }
        }
    }

    #[test]
    fn a_run_without_validation_or_before_its_first_epoch_has_a_page() {
        let unvalidated = Row { val_loss: f64::NAN, val_top1: f64::NAN, val_top5: f64::NAN, ..ROW };
        for epochs in [vec![], vec![unvalidated]] {
            let text = check(&page(&["a", "b"], None, epochs, Standing::UnderWay));
            assert!(text.contains("of 2 epochs done") && !text.contains("NaN"), "{text}");
        }
    }

    #[test]
    fn what_was_measured_is_told() {
        let page = page(
            &["ants", "bees", "wasps"],
            Some(&metrics(3, 7, 1)),
            vec![ROW],
            Standing::Finished,
        );
        let text = check(&page);
        assert!(text.contains("Finished after 1 of 2 epochs."), "{text}");
        assert!(text.contains("1 min 1 s") && text.contains("50.0 %"), "{text}");
        assert!(text.contains("ants taken for bees: 3 of 3"), "{text}");
        assert!(page.contains("3 images of ants taken for bees: 100.0 % of the row"));
        // e^2 / (e^2 + 2) and 1 / (e^2 + 2).
        assert!(text.contains("taken for bees 78.7 %") && text.contains("ants 10.7 %"), "{text}");
    }

    #[test]
    fn hundreds_of_classes_stay_readable() {
        let names: Vec<String> = (0..200).map(|class| format!("class {class}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let page = page(&names, Some(&metrics(200, 400, 1)), vec![ROW], Standing::Finished);
        let text = check(&page);
        assert!(text.contains("The 20 classes with the most mistakes"), "{text}");
        assert!(page.contains("2 images of class 7 taken for class 8: 100.0 % of the row"));
        assert!(page.len() < 8 << 20, "{} bytes", page.len());
    }
}
