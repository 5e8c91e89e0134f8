//! torchvision's `ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)` on RGB bytes.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

/// Changes brightness, contrast, saturation and hue by random amounts in random order.
pub(super) fn color_jitter(pixels: &mut [u8], rng: &mut impl Rng) {
    let adjustments: [fn(&mut [u8], f32); 4] =
        [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue];
    let mut amounts = [0.0; 4];
    amounts[..3].fill_with(|| rng.random_range(0.6..1.4));
    amounts[3] = rng.random_range(-0.1..0.1);
    let mut order = [0, 1, 2, 3];
    order.shuffle(rng);
    for which in order {
        adjustments[which](pixels, amounts[which]);
    }
}

/// Scales every value by `factor`.
fn adjust_brightness(pixels: &mut [u8], factor: f32) {
    pixels.iter_mut().for_each(|value| *value = blend(*value, 0.0, factor));
}

/// Moves every value away from (`factor` > 1) or towards the image's mean luminance.
fn adjust_contrast(pixels: &mut [u8], factor: f32) {
    let (colors, _) = pixels.as_chunks::<3>();
    let total: f64 = colors.iter().map(|&color| f64::from(luminance(color))).sum();
    let mean = (total / colors.len().max(1) as f64) as f32;
    pixels.iter_mut().for_each(|value| *value = blend(*value, mean, factor));
}

/// Moves every colour away from (`factor` > 1) or towards its own grey.
fn adjust_saturation(pixels: &mut [u8], factor: f32) {
    for color in pixels.as_chunks_mut::<3>().0 {
        let grey = luminance(*color);
        *color = color.map(|value| blend(value, grey, factor));
    }
}

/// Turns every colour's hue by `turns` of the circle.
fn adjust_hue(pixels: &mut [u8], turns: f32) {
    for color in pixels.as_chunks_mut::<3>().0 {
        *color = turn_hue(*color, turns);
    }
}

/// A colour is `minimum + chroma·triangle(hue)` in each channel; the channels' triangles are a third
/// of a turn apart, so hue is read from which channels are extreme and the colour rebuilt.
fn turn_hue(color: [u8; 3], turns: f32) -> [u8; 3] {
    let [red, green, blue] = color.map(f32::from);
    let maximum = red.max(green).max(blue);
    let chroma = maximum - red.min(green).min(blue);
    if chroma == 0.0 {
        return color;
    }
    let sixths = if maximum == red {
        (green - blue) / chroma
    } else if maximum == green {
        2.0 + (blue - red) / chroma
    } else {
        4.0 + (red - green) / chroma
    };
    let sixths = sixths + 6.0 * turns;
    [5.0, 3.0, 1.0].map(|offset: f32| {
        let position = match sixths + offset {
            below if below < 0.0 => below + 6.0,
            beyond if beyond >= 6.0 => beyond - 6.0,
            position => position,
        };
        let share = position.min(4.0 - position).clamp(0.0, 1.0);
        nearest(maximum - chroma * share)
    })
}

fn luminance([red, green, blue]: [u8; 3]) -> f32 {
    0.2989 * f32::from(red) + 0.587 * f32::from(green) + 0.114 * f32::from(blue)
}

/// `factor` of `value` and the rest of `other`.
fn blend(value: u8, other: f32, factor: f32) -> u8 {
    nearest(factor * f32::from(value) + (1.0 - factor) * other)
}

/// The nearest of 0 to 255, to which the conversion clamps; `round` is a call for every number where
/// processors are not known to have an instruction for it.
fn nearest(value: f32) -> u8 {
    (value + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::{Purpose, generator};

    /// Against torchvision's functions on 8-bit tensors, which round down where this rounds.
    #[test]
    fn adjustments_agree_with_torchvision_within_a_level() {
        let fixture = include_str!("../../tests/fixtures/data/jitter.json");
        let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
        let bytes = |value: &serde_json::Value| -> Vec<u8> {
            value.as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8).collect()
        };
        let cases = fixture["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 8);
        for case in cases {
            let adjust = match case["adjust"].as_str().unwrap() {
                "brightness" => adjust_brightness,
                "contrast" => adjust_contrast,
                "saturation" => adjust_saturation,
                _ => adjust_hue,
            };
            let mut pixels = bytes(&fixture["input"]);
            adjust(&mut pixels, case["factor"].as_f64().unwrap() as f32);
            for (at, (ours, theirs)) in pixels.iter().zip(bytes(&case["output"])).enumerate() {
                let name = &case["adjust"];
                assert!(ours.abs_diff(theirs) <= 1, "{name} at {at}: {ours}, not {theirs}");
            }
        }
    }

    #[test]
    fn amounts_are_drawn_from_the_stated_ranges() {
        let jittered = |color: [u8; 3], index| {
            let mut pixels = color.repeat(4);
            color_jitter(&mut pixels, &mut generator(Purpose::Augment, 4, 0, index));
            [pixels[0], pixels[1], pixels[2]].map(f32::from)
        };
        let range = |of: &dyn Fn(usize) -> f32| {
            let values: Vec<f32> = (0..1000).map(of).collect();
            let least = values.iter().copied().fold(f32::INFINITY, f32::min);
            (least, values.into_iter().fold(f32::NEG_INFINITY, f32::max))
        };
        let near = |(least, most): (f32, f32), expected: (f32, f32), by: f32| {
            let off = [least - expected.0, expected.1 - most];
            assert!(off.iter().all(|off| (-by..2.0 * by).contains(off)), "{least} to {most}");
        };
        // A grey area shows brightness alone.
        near(range(&|index| jittered([150; 3], index)[0] / 150.0), (0.6, 1.4), 0.01);
        // Contrast and saturation both take a single colour's distance from its grey times 0.6 to 1.4.
        let grey = |color: [f32; 3]| luminance(color.map(|value| value as u8));
        let share = |color: [f32; 3]| (color[0] - color[1]) / grey(color);
        let red = [90, 60, 60];
        let plain = share(red.map(f32::from));
        let hueless = |index| {
            let color = jittered(red, index);
            let spread = color.iter().copied().fold(0.0, f32::max)
                - color.iter().copied().fold(255.0, f32::min);
            spread / grey(color) / plain
        };
        near(range(&hueless), (0.36, 1.96), 0.15);
        // Hue turns by a tenth at most: of six sixths of a turn, 0.6 towards green or blue. Where little
        // colour is left, rounding hides it.
        let turn = |index| {
            let [red, green, blue] = jittered([100, 50, 50], index);
            let chroma = red - green.min(blue);
            if chroma < 60.0 { 0.0 } else { (green - blue) / chroma }
        };
        near(range(&turn), (-0.6, 0.6), 0.03);
    }
}
