//! The backward pass.

use super::stats::{CHUNK, ChunkParams};
use super::{
    BACKWARD_APPLY, BACKWARD_FEW, BACKWARD_FINISH, BACKWARD_REDUCE, BatchNorm, BatchNormState, FEW,
    UNROLL, row_groups, threads_for, unroll,
};
use crate::Result;
use crate::autograd::{Backward, Grads, Slot, Target, Var};
use crate::gpu::{AdapterClass, Gpu, Kernel, Slice};
use crate::tensor::{Shape, Tensor};

/// The gradients by input, γ, β and residual.
pub struct BatchNormBackward {
    pub(super) x: Var,
    pub(super) gamma: Slot,
    pub(super) beta: Slot,
    pub(super) residual: Option<Slot>,
    /// The output, where it is needed to know what the ReLU let through.
    pub(super) y: Option<Tensor>,
    pub(super) coefficients: Slice,
    pub(super) options: BatchNorm,
}

impl Backward for BatchNormBackward {
    fn backward(self: Box<Self>, d_y: Tensor, grads: &mut Grads) -> Result<()> {
        let batch = self.options.training && self.x.needs_grad();
        let few = batch && d_y.shape().pixels() <= FEW;
        let wants_affine = self.gamma.needs_grad() || self.beta.needs_grad();
        let sums = (!few && (wants_affine || batch)).then(|| self.reduce(&d_y, grads));
        if self.mask() == 0
            && let Some(residual) = self.residual
        {
            grads.give(residual, d_y.clone())?;
        }
        let empty = |grads: &Grads| {
            let tensor = Tensor::empty_as(grads.gpu(), d_y.shape(), d_y.dtype());
            Target { tensor, accumulate: false }
        };
        // What is normalised may be the residual, too; no kernel has two gradients go to one place.
        let both = self.residual.filter(|residual| residual.is(self.x.slot()) && self.mask() != 0);
        let residual = match (self.mask(), both) {
            (0, _) => None,
            (_, Some(_)) => Some(empty(grads)),
            _ => self.residual.and_then(|residual| grads.target(residual)),
        };
        // Without an input to differentiate by, the last pass still masks the residual's gradient.
        let d_x = match grads.target(self.x.slot()) {
            Some(target) => target,
            None if residual.is_some() => empty(grads),
            None => return Ok(()),
        };
        if few {
            self.all_at_once(&d_y, &d_x, residual.as_ref(), grads);
        } else {
            self.apply(&d_y, &d_x, residual.as_ref(), sums.filter(|_| batch), grads.gpu());
        }
        match (both, residual) {
            (Some(slot), Some(Target { tensor, .. })) => grads.give(slot, tensor),
            _ => Ok(()),
        }
    }
}

impl BatchNormBackward {
    /// The backward of a batch norm without residual.
    pub fn new(
        x: &Var,
        state: BatchNormState<'_>,
        coefficients: Slice,
        options: BatchNorm,
    ) -> Self {
        let (gamma, beta) = (state.gamma.slot(), state.beta.slot());
        Self { x: x.clone(), gamma, beta, residual: None, y: None, coefficients, options }
    }

    /// What is normalised.
    pub fn input(&self) -> &Var {
        &self.x
    }

    /// How the kernels tell what the ReLU let through; their `MASK`.
    fn mask(&self) -> u32 {
        match (self.options.relu, &self.y) {
            (false, _) => 0,
            (true, None) => 1,
            (true, Some(_)) => 2,
        }
    }

    /// The gradients by the input and the residual; with batch statistics, `sums` are what [`Self::reduce`] gave.
    fn apply(
        &self,
        d_y: &Tensor,
        d_x: &Target,
        residual: Option<&Target>,
        sums: Option<Slice>,
        gpu: &Gpu,
    ) {
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct BackwardParams {
            rows: u32,
            c4: u32,
            accumulate: u32,
            accumulate_residual: u32,
        }
        let shape = d_y.shape();
        let params = BackwardParams {
            rows: shape.pixels() as u32,
            c4: shape.c4() as u32,
            accumulate: d_x.accumulate.into(),
            accumulate_residual: residual.is_some_and(|residual| residual.accumulate).into(),
        };
        let kernel = Kernel::new(&BACKWARD_APPLY)
            .with("UNROLL", unroll(gpu))
            .with("MASK", self.mask())
            .with("BATCH", sums.is_some().into())
            .with("RESIDUAL", residual.is_some().into())
            .half(d_y.dtype().is_half());
        let mut slices = vec![d_y.memory(), &self.coefficients, d_x.tensor.memory()];
        slices.extend(self.y.as_ref().map(Tensor::memory));
        slices.extend(residual.map(|residual| residual.tensor.memory()));
        slices.extend(&sums);
        if sums.is_some() || self.mask() == 1 {
            slices.push(self.x.value().memory());
        }
        gpu.run(kernel, &params, &slices, row_groups(gpu, shape));
    }

    /// All gradients of few pixels with batch statistics.
    fn all_at_once(
        &self,
        d_y: &Tensor,
        d_x: &Target,
        residual: Option<&Target>,
        grads: &mut Grads,
    ) {
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct FewParams {
            rows: u32,
            c4: u32,
            accumulate: u32,
            accumulate_residual: u32,
            accumulate_beta: u32,
            accumulate_gamma: u32,
        }
        let (beta, gamma) = (grads.target(self.beta), grads.target(self.gamma));
        let accumulate = |target: Option<&Target>| target.is_some_and(|t| t.accumulate).into();
        let (gpu, shape) = (grads.gpu(), d_y.shape());
        let params = FewParams {
            rows: shape.pixels() as u32,
            c4: shape.c4() as u32,
            accumulate: d_x.accumulate.into(),
            accumulate_residual: accumulate(residual),
            accumulate_beta: accumulate(beta.as_ref()),
            accumulate_gamma: accumulate(gamma.as_ref()),
        };
        let kernel = Kernel::new(&BACKWARD_FEW)
            .with("THREADS", threads_for(gpu, shape.pixels()))
            .with("MASK", self.mask())
            .with("RESIDUAL", residual.is_some().into())
            .with("BETA", beta.is_some().into())
            .with("GAMMA", gamma.is_some().into())
            .half(d_y.dtype().is_half());
        let mut slices =
            vec![self.x.value().memory(), d_y.memory(), &self.coefficients, d_x.tensor.memory()];
        slices.extend(self.y.as_ref().map(Tensor::memory));
        let targets = [residual, beta.as_ref(), gamma.as_ref()];
        slices.extend(targets.into_iter().flatten().map(|target| target.tensor.memory()));
        gpu.run(kernel, &params, &slices, gpu.groups(shape.c4()));
    }

    /// Σ d_z and Σ d_z·x̂ of each channel, which are also the gradients of β and γ.
    fn reduce(&self, d_y: &Tensor, grads: &mut Grads) -> Slice {
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct SumParams {
            c4: u32,
            chunks: u32,
            accumulate_beta: u32,
            accumulate_gamma: u32,
        }
        let beta = grads.target(self.beta);
        let gamma = grads.target(self.gamma);
        let (gpu, shape) = (grads.gpu(), d_y.shape());
        let chunk = chunk_of_sums(gpu, shape);
        let chunks = shape.pixels().div_ceil(chunk);
        let partials = gpu.lease((chunks * 2 * shape.c4()) as u64 * 16);
        let mut slices = vec![self.x.value().memory(), d_y.memory(), &self.coefficients, &partials];
        slices.extend(self.y.as_ref().map(Tensor::memory));
        gpu.run(
            Kernel::new(&BACKWARD_REDUCE)
                .with("UNROLL", unroll(gpu))
                .with("MASK", self.mask())
                .half(d_y.dtype().is_half()),
            &ChunkParams::new(shape, chunk),
            &slices,
            gpu.groups((chunks * shape.c4()).div_ceil(64)),
        );
        let sums = gpu.lease(Shape::matrix(2, shape.c).bytes());
        let params = SumParams {
            c4: shape.c4() as u32,
            chunks: chunks as u32,
            accumulate_beta: beta.as_ref().is_some_and(|beta| beta.accumulate).into(),
            accumulate_gamma: gamma.as_ref().is_some_and(|gamma| gamma.accumulate).into(),
        };
        let kernel = Kernel::new(&BACKWARD_FINISH)
            .with("THREADS", threads_for(gpu, chunks))
            .with("BETA", beta.is_some().into())
            .with("GAMMA", gamma.is_some().into());
        let mut slices = vec![&partials, &sums];
        slices.extend(beta.as_ref().map(|beta| beta.tensor.memory()));
        slices.extend(gamma.as_ref().map(|gamma| gamma.tensor.memory()));
        gpu.run(kernel, &params, &slices, gpu.groups(shape.c4()));
        sums
    }
}

/// Pixels that a thread adds up backward: on a GPU as many as leave it enough threads.
fn chunk_of_sums(gpu: &Gpu, shape: Shape) -> usize {
    const THREADS: usize = 1 << 17;
    match gpu.class() {
        AdapterClass::Software => CHUNK,
        _ => (shape.pixels() * shape.c4() / THREADS).clamp(8, 256).next_multiple_of(UNROLL),
    }
}
