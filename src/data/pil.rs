//! What Pillow does to 8-bit RGB images, to the byte.

/// `Image.transform(size, AFFINE, matrix)`, nearest neighbour: the pixel at (x, y) comes from
/// (a·x + b·y + c, d·x + e·y + f) of the square image, in 16.16 fixed point; black where there is none.
pub(super) fn affine(pixels: &mut Vec<u8>, size: u32, [a, b, c, d, e, f]: [f64; 6]) {
    let fix = |value: f64| (value * 65536.0 + 0.5).floor() as i64;
    let mut output = vec![0; pixels.len()];
    let side = i64::from(size);
    // Centres of pixels.
    let start = [fix(c + 0.5 * a + 0.5 * b), fix(f + 0.5 * d + 0.5 * e)];
    let [a, b, d, e] = [a, b, d, e].map(fix);
    for (y, row) in (0..).zip(output.chunks_exact_mut(3 * size as usize)) {
        let mut at = [start[0] + b * y, start[1] + e * y];
        for pixel in row.as_chunks_mut::<3>().0 {
            let [x, y] = at.map(|value| value >> 16);
            if (0..side).contains(&x) && (0..side).contains(&y) {
                let from = 3 * (y * side + x) as usize;
                pixel.copy_from_slice(&pixels[from..from + 3]);
            }
            at = [at[0] + a, at[1] + d];
        }
    }
    *pixels = output;
}

/// `Image.rotate(degrees)` about the centre, against the clock.
pub(super) fn rotate(pixels: &mut Vec<u8>, size: u32, degrees: f64) {
    let angle = -degrees.rem_euclid(360.0).to_radians();
    let round = |value: f64| (value * 1e15).round_ties_even() / 1e15;
    let (cos, sin) = (round(angle.cos()), round(angle.sin()));
    let center = f64::from(size) / 2.0;
    let c = cos * -center + sin * -center + center;
    let f = -sin * -center + cos * -center + center;
    affine(pixels, size, [cos, sin, c, -sin, cos, f]);
}

/// `ImageEnhance.Brightness`.
pub(super) fn brightness(pixels: &mut [u8], factor: f64) {
    pixels.iter_mut().for_each(|value| *value = blend(0, *value, factor));
}

/// `ImageEnhance.Color`: away from grey or towards it.
pub(super) fn color(pixels: &mut [u8], factor: f64) {
    for pixel in pixels.as_chunks_mut::<3>().0 {
        let grey = luma(*pixel);
        *pixel = pixel.map(|value| blend(grey, value, factor));
    }
}

/// `ImageEnhance.Contrast`: away from the mean grey or towards it.
pub(super) fn contrast(pixels: &mut [u8], factor: f64) {
    let (colors, _) = pixels.as_chunks::<3>();
    let total: u64 = colors.iter().map(|&color| u64::from(luma(color))).sum();
    let mean = (total as f64 / colors.len().max(1) as f64 + 0.5) as u8;
    pixels.iter_mut().for_each(|value| *value = blend(mean, *value, factor));
}

/// `ImageEnhance.Sharpness`: away from the smoothed image or towards it; the edge stays.
pub(super) fn sharpness(pixels: &mut [u8], size: u32, factor: f64) {
    let (size, row) = (size as usize, 3 * size as usize);
    let smooth: Vec<u8> = (0..pixels.len())
        .map(|at| {
            let (y, x) = (at / row, at % row / 3);
            if y == 0 || x == 0 || y + 1 == size || x + 1 == size {
                return pixels[at];
            }
            let three = |at: usize| -> u32 {
                [at - 3, at, at + 3].iter().map(|&at| u32::from(pixels[at])).sum()
            };
            // Weights 1 around 5, over 13; no sum lies halfway between two levels.
            let sum = three(at - row) + three(at) + three(at + row) + 4 * u32::from(pixels[at]);
            ((2 * sum + 13) / 26) as u8
        })
        .collect();
    for (value, smooth) in pixels.iter_mut().zip(smooth) {
        *value = blend(smooth, *value, factor);
    }
}

/// `ImageOps.posterize`: keeps the highest `bits` bits.
pub(super) fn posterize(pixels: &mut [u8], bits: u32) {
    let mask = 0xff_u8.checked_shl(8 - bits.min(8)).unwrap_or(0);
    pixels.iter_mut().for_each(|value| *value &= mask);
}

/// `ImageOps.solarize`: inverts what is not below the threshold.
pub(super) fn solarize(pixels: &mut [u8], threshold: f64) {
    for value in pixels {
        if f64::from(*value) >= threshold {
            *value = 255 - *value;
        }
    }
}

/// `ImageOps.autocontrast`: stretches each channel to 0…255.
pub(super) fn auto_contrast(pixels: &mut [u8]) {
    tabulate(pixels, |counts| {
        let lowest = counts.iter().position(|&count| count > 0)?;
        let highest = counts.iter().rposition(|&count| count > 0)?;
        if highest <= lowest {
            return None;
        }
        let scale = 255.0 / (highest - lowest) as f64;
        let offset = -(lowest as f64) * scale;
        // The conversion truncates and clamps.
        Some(std::array::from_fn(|level| (level as f64 * scale + offset) as u8))
    });
}

/// `ImageOps.equalize`: makes the levels of each channel about equally frequent.
pub(super) fn equalize(pixels: &mut [u8]) {
    tabulate(pixels, |counts| {
        let last = counts.iter().rfind(|&&count| count > 0)?;
        let step = (counts.iter().sum::<u32>() - last) / 255;
        if step == 0 {
            return None;
        }
        let mut below = step / 2;
        Some(std::array::from_fn(|level| {
            let to = (below / step).min(255) as u8;
            below += counts[level];
            to
        }))
    });
}

/// Replaces the levels of each channel by a table made from how often each occurs.
fn tabulate(pixels: &mut [u8], table: impl Fn(&[u32; 256]) -> Option<[u8; 256]>) {
    for channel in 0..3 {
        let mut counts = [0; 256];
        pixels.iter().skip(channel).step_by(3).for_each(|&level| counts[level as usize] += 1);
        if let Some(table) = table(&counts) {
            let levels = pixels.iter_mut().skip(channel).step_by(3);
            levels.for_each(|level| *level = table[*level as usize]);
        }
    }
}

/// `convert("L")`.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    let sum = 19595 * u32::from(red) + 38470 * u32::from(green) + 7471 * u32::from(blue);
    ((sum + 0x8000) >> 16) as u8
}

/// `Image.blend`: truncates, in f32; the conversion clamps.
fn blend(from: u8, to: u8, factor: f64) -> u8 {
    let (from, to) = (i32::from(from), i32::from(to));
    (from as f32 + factor as f32 * (to - from) as f32) as u8
}
