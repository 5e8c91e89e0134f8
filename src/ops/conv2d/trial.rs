//! One pass of a convolution by itself, to measure and compare the kernels it can be done by.

use super::epilogue::Epilogue;
use super::geometry::Geometry;
use super::passes::{backward_data, backward_weight, forward};
use super::sharing::sum_gradients;
use super::tiling::Operand;
use super::{Conv2d, PASSES, kernels};
use crate::autograd::Target;
use crate::gpu::{Gpu, Problem, Sizes};
use crate::ops::case::{Fill, filled};
use crate::tensor::{Dtype, Shape, Tensor};
use crate::{Error, Result};

/// A pass with numbers to work on.
pub struct Trial {
    gpu: Gpu,
    pass: &'static str,
    geometry: Geometry,
}

/// What a pass reads.
pub struct Operands([Tensor; 2]);

impl Trial {
    /// The pass that `problem` is about.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not a convolution's.
    pub fn new(gpu: &Gpu, problem: &Problem) -> Result<Self> {
        if !PASSES.contains(&problem.pass) {
            return Err(Error::shape("trial", format!("{} is no convolution", problem.pass)));
        }
        let geometry = Geometry::of_sizes(problem.sizes)?;
        Ok(Self { gpu: gpu.clone(), pass: problem.pass, geometry })
    }

    /// Small problems of each pass, no size of which fits a tile: of windows with a stride, of such as leave images
    /// the size they are, with many outputs and with few, and of a first layer.
    ///
    /// # Errors
    /// What the device reported.
    pub fn samples(gpu: &Gpu, dtype: Dtype) -> Result<Vec<Problem>> {
        let sizes = |width, [channels_in, channels_out]: [usize; 2], window, stride| {
            let conv = Conv2d { stride, padding: [window / 2; 2] };
            let weight = Shape::new(window, window, channels_in.next_multiple_of(4), channels_out);
            let geometry = Geometry::new(Shape::new(3, 11, width, channels_in), weight, conv)?;
            Ok::<_, Error>(Geometry { dtype, ..geometry }.sizes())
        };
        let all = [
            sizes(9, [40, 72], 3, [2, 1])?,
            sizes(9, [96, 96], 3, [1, 1])?,
            sizes(9, [64, 64], 3, [1, 1])?,
            sizes(10, [3, 24], 7, [2, 2])?,
        ];
        let all = all.into_iter().flat_map(|sizes| PASSES.iter().map(move |&pass| (pass, sizes)));
        let sample = |(pass, sizes): (&'static str, Sizes)| {
            let trial = Self::new(gpu, &Problem { pass, sizes, kernels: Vec::new() })?;
            let operands = trial.operands(false)?;
            let plan = gpu.plan(|| {
                trial.run(&operands);
                Ok(())
            })?;
            Ok(plan.problems)
        };
        Ok(all.map(sample).collect::<Result<Vec<_>>>()?.concat())
    }

    /// Numbers between −1 and 1 for the pass to work on; their absolute values with `magnitudes`.
    ///
    /// # Errors
    /// What the device reported.
    pub fn operands(&self, magnitudes: bool) -> Result<Operands> {
        let Geometry { x, weight, y, dtype, .. } = self.geometry;
        let number = |value: f64| if magnitudes { value.abs() } else { value };
        let tensor = |shape: Shape, fill: Fill, seed: u64| {
            let values = filled(shape, fill, seed).map(number).to_f32();
            Tensor::from_host_as(&self.gpu, shape, &values, dtype)
        };
        let unit = Fill::Uniform(-1.0, 1.0);
        let weight = || tensor(weight, Fill::Channels(x.c), 2);
        Ok(Operands(match self.pass {
            pass if pass == PASSES[0] => [tensor(x, unit, 1)?, weight()?],
            pass if pass == PASSES[1] => [tensor(y, unit, 3)?, weight()?],
            _ => [tensor(x, unit, 1)?, tensor(y, unit, 3)?],
        }))
    }

    /// Records the pass.
    pub fn run(&self, operands: &Operands) -> Tensor {
        let (gpu, Operands(tensors)) = (&self.gpu, operands);
        let operands = tensors.each_ref().map(Operand::new);
        let operands = operands.each_ref();
        let target = |tensor: Tensor| Target { tensor, accumulate: false };
        let Geometry { x, weight, dtype, .. } = self.geometry;
        match self.pass {
            pass if pass == PASSES[0] => {
                let method = kernels::forward(gpu, &self.geometry);
                forward(gpu, &self.geometry, method, operands, Epilogue::None)
            }
            pass if pass == PASSES[1] => {
                let d_x = target(Tensor::empty_as(gpu, x, dtype));
                let parts = backward_data(gpu, &self.geometry, operands, &d_x);
                sum_gradients(gpu, [None, parts.map(|parts| (parts, &d_x))]);
                d_x.tensor
            }
            _ => {
                let d_w = target(Tensor::empty(gpu, weight));
                let parts = backward_weight(gpu, &self.geometry, operands, &d_w);
                sum_gradients(gpu, [parts.map(|parts| (parts, &d_w)), None]);
                d_w.tensor
            }
        }
    }

    /// Products that each result is the sum of, at most.
    pub fn terms(&self) -> usize {
        let Geometry { x, weight, y, .. } = self.geometry;
        let window = weight.n * weight.h;
        match self.pass {
            pass if pass == PASSES[0] => window * x.c,
            pass if pass == PASSES[1] => window * y.c,
            _ => y.pixels(),
        }
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        self.geometry.flops()
    }
}
