//! Numbers in f64 on the host, and what fills them.

use std::fmt;

use half::f16;

use crate::tensor::Shape;

/// Numbers on the host, in f64, channels last, without padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The sizes.
    pub shape: Shape,
    /// One number for each element, channels fastest.
    pub data: Vec<f64>,
}

impl Array {
    /// All zeros.
    pub fn zeros(shape: Shape) -> Self {
        Self { shape, data: vec![0.0; shape.len()] }
    }

    /// An array of these numbers.
    ///
    /// # Panics
    /// If there is not one number for each element.
    pub fn new(shape: Shape, data: Vec<f64>) -> Self {
        assert_eq!(data.len(), shape.len(), "an array {shape} of {} numbers", data.len());
        Self { shape, data }
    }

    /// Index of an element.
    pub fn at(&self, n: usize, h: usize, w: usize, c: usize) -> usize {
        ((n * self.shape.h + h) * self.shape.w + w) * self.shape.c + c
    }

    /// The same array with every element changed.
    pub fn map(&self, change: impl Fn(f64) -> f64) -> Self {
        Self::new(self.shape, self.data.iter().map(|&value| change(value)).collect())
    }

    /// The same array with every element rounded to f16.
    pub fn to_half(&self) -> Self {
        self.map(|value| f16::from_f64(value).to_f64())
    }

    /// Numbers rounded to f32, as a device gets them.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|&value| value as f32).collect()
    }
}

/// How an input of a case is filled.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    /// Evenly between the two bounds.
    Uniform(f64, f64),
    /// Multiples of a quarter between -2 and 2: exact in f32, and many ties.
    Ties,
    /// Evenly in −1…1 for the first so many of the third index, zero beyond: a convolution's weight
    /// whose input channels are padded.
    Channels(usize),
    /// Uniform in −1…1, times powers of ten from 1e-15 to 1e15 that vary by channel; from 1e-3 to
    /// 1e3 in f16.
    Extremes,
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform(low, high) => write!(f, "in {low} to {high}"),
            Self::Ties => f.write_str("ties"),
            Self::Channels(channels) => write!(f, "of {channels} channels"),
            Self::Extremes => f.write_str("extremes"),
        }
    }
}

/// An array filled reproducibly; every number is exact in f32.
pub fn filled(shape: Shape, fill: Fill, seed: u64) -> Array {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ shape.len() as u64;
    let mut unit = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let number = |index: usize| {
        let value = match fill {
            Fill::Uniform(low, high) => low + (high - low) * unit(),
            Fill::Channels(channels) if index / shape.c % shape.w >= channels => 0.0,
            Fill::Channels(_) => 2.0 * unit() - 1.0,
            Fill::Ties => (unit() * 17.0).floor() / 4.0 - 2.0,
            Fill::Extremes => {
                let power = (index % shape.c) as i32 % 7 - 3;
                (2.0 * unit() - 1.0) * 10f64.powi(5 * power)
            }
        };
        f64::from(value as f32)
    };
    Array::new(shape, (0..shape.len()).map(number).collect())
}
