// What every kernel of the forward pass reads and writes, and what may follow its sums.

override BIAS: u32 = 0u;
// Whether to write mean and Σ(y − mean)² of the rows of every tile for batch norm.
override STATS: u32 = 0u;
// Whether scale·y + shift follows, then + residual, then max(·, 0): a batch norm in evaluation.
override AFFINE: u32 = 0u;
override RESIDUAL: u32 = 0u;
override RELU: u32 = 0u;

//#include conv2d_params
@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<stored>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<written>>;
//#if BIAS
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
//#end
//#if STATS
@group(0) @binding(4) var<storage, read_write> partials: array<vec4<f32>>;
//#end
//#if AFFINE
//#include conv2d_affine
@group(0) @binding(4) var<storage, read> gamma: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> beta: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> running: array<vec4<f32>>;  // mean, then variance
//#end
//#if RESIDUAL
@group(0) @binding(7) var<storage, read> residual: array<vec4<stored>>;
//#end
