//! The sizes of a convolution, and what kernels are told of them.

use crate::gpu::Sizes;
use crate::tensor::{Dtype, Shape, Tensor};
use crate::{Error, Result};

/// Stride and padding of a convolution, height first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Pixels from one window to the next.
    pub stride: [usize; 2],
    /// Zeros around the image.
    pub padding: [usize; 2],
}

/// Parameters of the convolution kernels.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub n: u32,
    pub h: u32,
    pub w: u32,
    /// Input channels over four.
    pub ci4: u32,
    pub oh: u32,
    pub ow: u32,
    /// Output channels over four.
    pub co4: u32,
    pub r: u32,
    pub s: u32,
    pub stride: [u32; 2],
    pub padding: [u32; 2],
    /// Backward by data: whether to add to what the output holds.
    pub accumulate: u32,
    /// Parts that sums are split into, and of each the output image rows, backward by weight, or else the
    /// groups of four terms.
    pub splits: u32,
    pub chunk: u32,
    /// Whether rows of a product go through the images at one place first, then to the next place.
    pub images_first: u32,
    /// Forward, where a batch norm follows: what is added to its variance.
    pub epsilon: f32,
}

/// Pixels of an image up to which the rows of a product go through the images first: the fewer, the more
/// of what they read is padding, which is passed over then.
pub const FEW_PLACES: usize = 64;

/// Sizes of one convolution, checked.
#[derive(Clone, Copy)]
pub struct Geometry {
    pub x: Shape,
    pub weight: Shape,
    pub y: Shape,
    pub conv: Conv2d,
    /// Of x, y, the weight and the gradients by x and y; that by the weight is always in f32.
    pub dtype: Dtype,
}

impl Geometry {
    /// That of a convolution of tensors.
    pub fn of(x: &Tensor, weight: &Tensor, conv: Conv2d) -> Result<Self> {
        if x.dtype() != weight.dtype() {
            let what = format!("an input in {} meets a weight in {}", x.dtype(), weight.dtype());
            return Err(Error::shape("conv2d", what));
        }
        Ok(Self { dtype: x.dtype(), ..Self::new(x.shape(), weight.shape(), conv)? })
    }

    pub fn new(x: Shape, weight: Shape, conv: Conv2d) -> Result<Self> {
        let Shape { n: r, h: s, w: c_in, c: c_out } = weight;
        let error = |what: String| Err(Error::shape("conv2d", what));
        if c_in != x.c.next_multiple_of(4) {
            return error(format!("an input {x} does not meet a weight {weight} (r, s, in, out)"));
        }
        if conv.stride.contains(&0) {
            return error("a stride of 0".into());
        }
        let reach = [x.h + 2 * conv.padding[0], x.w + 2 * conv.padding[1]];
        if reach[0] < r || reach[1] < s {
            return error(format!("a window {r}x{s} is larger than the padded input {x}"));
        }
        let y = Shape::new(
            x.n,
            (reach[0] - r) / conv.stride[0] + 1,
            (reach[1] - s) / conv.stride[1] + 1,
            c_out,
        );
        Ok(Self { x, weight, y, conv, dtype: Dtype::F32 })
    }

    pub fn params(&self) -> Params {
        let Self { x, weight, y, conv, .. } = self;
        Params {
            n: x.n as u32,
            h: x.h as u32,
            w: x.w as u32,
            ci4: x.c4() as u32,
            oh: y.h as u32,
            ow: y.w as u32,
            co4: y.c4() as u32,
            r: weight.n as u32,
            s: weight.h as u32,
            stride: conv.stride.map(|s| s as u32),
            padding: conv.padding.map(|p| p as u32),
            accumulate: 0,
            splits: 1,
            chunk: (x.n * y.h) as u32,
            images_first: (y.h * y.w <= FEW_PLACES).into(),
            epsilon: 0.0,
        }
    }

    /// What the fastest kernel may depend on.
    pub fn sizes(&self) -> Sizes {
        let Self { x, weight, y, conv, dtype } = self;
        let half = usize::from(dtype.is_half());
        let [n, h, w] = [x.n, x.h, x.w];
        let [stride_h, stride_w] = conv.stride;
        let [pad_h, pad_w] = conv.padding;
        [n, h, w, x.c, weight.n, weight.h, y.c, stride_h, stride_w, pad_h, pad_w, half]
            .map(|size| size as u32)
    }

    /// The convolution of these [`Geometry::sizes`].
    pub fn of_sizes(sizes: Sizes) -> Result<Self> {
        let [n, h, w, c_in, r, s, c_out, stride_h, stride_w, pad_h, pad_w, half] =
            sizes.map(|size| size as usize);
        let geometry = Self::new(
            Shape::new(n, h, w, c_in),
            Shape::new(r, s, c_in.next_multiple_of(4), c_out),
            Conv2d { stride: [stride_h, stride_w], padding: [pad_h, pad_w] },
        )?;
        let dtype = if half == 1 { Dtype::F16 } else { Dtype::F32 };
        Ok(Self { dtype, ..geometry })
    }

    /// Whether two neighbouring pixels can be read as one: four channels of f16 each, windows that begin at
    /// every second column, and rows of an even length.
    pub fn has_pairs(&self) -> bool {
        self.dtype.is_half()
            && self.x.c <= 4
            && self.conv.stride[1] == 2
            && self.x.w.is_multiple_of(2)
    }

    /// Taps of padding in front of a window's first that complete a pair.
    pub fn lead(&self) -> usize {
        self.conv.padding[1] % 2
    }

    /// The same convolution where it [`Geometry::has_pairs`], over pixels of eight channels. Its windows have
    /// one tap for two, and up to one before and one after those of the weight, which lacks these.
    pub fn paired(&self) -> Self {
        let Self { x, weight, conv, .. } = *self;
        let ([stride, _], [padding_h, padding_w]) = (conv.stride, conv.padding);
        let taps = (weight.h + self.lead()).div_ceil(2);
        Self {
            x: Shape { w: x.w / 2, c: 8, ..x },
            weight: Shape { h: taps, w: 8, ..weight },
            conv: Conv2d { stride: [stride, 1], padding: [padding_h, padding_w.div_ceil(2)] },
            ..*self
        }
    }

    /// Whether windows leave images the size they are, one for each pixel.
    pub fn keeps_size(&self) -> bool {
        self.conv.stride == [1, 1] && [self.x.h, self.x.w] == [self.y.h, self.y.w]
    }

    /// The convolution that goes from `y` to `x`, if this one [`Geometry::keeps_size`].
    pub fn turned(&self) -> Self {
        Self { x: self.y, y: self.x, ..*self }
    }

    /// Multiplications and additions of each of the three passes.
    pub fn flops(&self) -> f64 {
        2.0 * self.y.len() as f64 * (self.weight.n * self.weight.h * self.x.c) as f64
    }
}
