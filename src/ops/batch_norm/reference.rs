//! Batch normalisation in f64 on the host.

use super::BatchNorm;
use super::stats::CHUNK;
use crate::ops::case::{Array, Expected};
use crate::tensor::Shape;

/// Statistics of one channel.
pub struct Channel {
    pub mean: f64,
    pub variance: f64,
    /// Mean of |x|: what rounding errors of the mean scale with.
    pub magnitude: f64,
}

fn channel(x: &Array, c: usize) -> Channel {
    let values = || x.data.iter().skip(c).step_by(x.shape.c);
    let m = x.shape.pixels() as f64;
    let mean = values().sum::<f64>() / m;
    Channel {
        mean,
        variance: values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / m,
        magnitude: values().map(|v| v.abs()).sum::<f64>() / m,
    }
}

/// The statistics used: the batch's in training, else the running ones (a matrix of mean, variance).
pub fn statistics(x: &Array, running: &Array, c: usize, options: BatchNorm) -> Channel {
    match options.training {
        true => channel(x, c),
        false => {
            let (mean, variance) = (running.data[c], running.data[x.shape.c + c]);
            Channel { mean, variance, magnitude: mean.abs() }
        }
    }
}

/// Terms whose rounding errors a value carries: those of the statistics, in training.
fn terms(x: &Array, options: BatchNorm) -> usize {
    if options.training { x.shape.pixels() } else { 1 }
}

/// The output and the updated running statistics. Inputs: x, γ, β, running, and a residual.
pub fn reference(inputs: &[Array], options: BatchNorm) -> Vec<Expected> {
    let [x, gamma, beta, running] = &inputs[..4] else { unreachable!("four inputs at least") };
    let (channels, m) = (x.shape.c, x.shape.pixels() as f64);
    let (mut y, mut magnitudes) = (Array::zeros(x.shape), vec![0.0; x.data.len()]);
    let mut updated = running.clone();
    let mut updated_magnitudes = running.map(f64::abs).data;
    for c in 0..channels {
        let Channel { mean, variance, magnitude } = statistics(x, running, c, options);
        let inverse = 1.0 / (variance + f64::from(options.epsilon)).sqrt();
        for at in (c..x.data.len()).step_by(channels) {
            let normalised = (x.data[at] - mean) * inverse;
            let residual = inputs.get(4).map_or(0.0, |residual| residual.data[at]);
            let z = gamma.data[c] * normalised + beta.data[c] + residual;
            y.data[at] = if options.relu { z.max(0.0) } else { z };
            magnitudes[at] = gamma.data[c].abs()
                * ((x.data[at].abs() + magnitude) * inverse + normalised.abs())
                + beta.data[c].abs()
                + residual.abs();
        }
        if options.training {
            let momentum = f64::from(options.momentum);
            let unbiased = variance * m / (m - 1.0);
            updated.data[c] += momentum * (mean - running.data[c]);
            updated.data[channels + c] += momentum * (unbiased - running.data[channels + c]);
            updated_magnitudes[c] += momentum * magnitude;
            // Chunk means lie about σ/√CHUNK apart; an error of each moves the variance by twice that.
            let merged = 2.0 * magnitude * (variance / CHUNK as f64).sqrt();
            updated_magnitudes[channels + c] += momentum * (unbiased + merged);
        }
    }
    vec![
        Expected::sums(y, &magnitudes, terms(x, options)),
        Expected::sums(updated, &updated_magnitudes, terms(x, options)),
    ]
}

/// The gradients by x, γ, β and the residual; `stored` if d_y is an activation on the way.
pub fn reference_gradient(
    inputs: &[Array],
    d_y: &Array,
    options: BatchNorm,
    stored: bool,
) -> Vec<Option<Expected>> {
    let [x, gamma, beta, running] = &inputs[..4] else { unreachable!("four inputs at least") };
    let (channels, m) = (x.shape.c, x.shape.pixels() as f64);
    let vector = Shape::vector(channels);
    let (mut d_x, mut d_x_magnitudes) = (Array::zeros(x.shape), vec![0.0; x.data.len()]);
    let (mut d_gamma, mut d_gamma_magnitudes) = (Array::zeros(vector), vec![0.0; channels]);
    let (mut d_beta, mut d_beta_magnitudes) = (Array::zeros(vector), vec![0.0; channels]);
    let mut d_z = d_y.clone();
    for c in 0..channels {
        let Channel { mean, variance, magnitude } = statistics(x, running, c, options);
        let inverse = 1.0 / (variance + f64::from(options.epsilon)).sqrt();
        let indices = || (c..x.data.len()).step_by(channels);
        // How far rounding may take x̂, in units of ε.
        let wobble = |at: usize| (x.data[at].abs() + magnitude) * inverse;
        for at in indices() {
            let normalised = (x.data[at] - mean) * inverse;
            let residual = inputs.get(4).map_or(0.0, |residual| residual.data[at]);
            if options.relu && gamma.data[c] * normalised + beta.data[c] + residual <= 0.0 {
                d_z.data[at] = 0.0;
            }
            let d = d_z.data[at];
            d_beta.data[c] += d;
            d_beta_magnitudes[c] += d.abs();
            d_gamma.data[c] += d * normalised;
            d_gamma_magnitudes[c] += d.abs() * (normalised.abs() + wobble(at));
        }
        let share = f64::from(u8::from(options.training)) / m;
        for at in indices() {
            let normalised = (x.data[at] - mean) * inverse;
            let scale = gamma.data[c] * inverse;
            let slope = d_gamma.data[c] * share;
            d_x.data[at] = scale * (d_z.data[at] - d_beta.data[c] * share - normalised * slope);
            d_x_magnitudes[at] = scale.abs()
                * (d_z.data[at].abs()
                    + share * d_beta_magnitudes[c]
                    + share * normalised.abs() * d_gamma_magnitudes[c]
                    + slope.abs() * wobble(at));
        }
    }
    let pixels = x.shape.pixels();
    let sums = |values: Array, magnitudes: Vec<f64>, terms: usize| {
        let expected = Expected::sums(values, &magnitudes, terms);
        Some(if stored { expected.through(magnitudes) } else { expected })
    };
    let mut gradients = vec![
        sums(d_x, d_x_magnitudes, terms(x, options)),
        sums(d_gamma, d_gamma_magnitudes, pixels),
        sums(d_beta, d_beta_magnitudes, pixels),
        None,
    ];
    if inputs.len() > 4 {
        gradients.push(Some(Expected::exact(d_z)));
    }
    gradients
}
