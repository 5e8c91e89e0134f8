// What may follow the sums of a forward pass, and its memory: bindings go on from OUTPUT, that of y, whose
// numbers are of the type `written`; both are the kernel's.

override BIAS: u32 = 0u;
// Whether to write mean and Σ(y − mean)² of every few pixels for batch norm.
override STATS: u32 = 0u;
// Whether scale·y + shift follows, then + residual, then max(·, 0): a batch norm in evaluation.
override AFFINE: u32 = 0u;
override RESIDUAL: u32 = 0u;
override RELU: u32 = 0u;

@group(0) @binding(${OUTPUT}) var<storage, read_write> y: array<vec4<written>>;
//#if BIAS
@group(0) @binding(${OUTPUT + 1}) var<storage, read> bias: array<vec4<f32>>;
//#end
//#if STATS
@group(0) @binding(${OUTPUT + 1}) var<storage, read_write> partials: array<vec4<f32>>;
//#end
//#if AFFINE
//#include conv2d_affine
@group(0) @binding(${OUTPUT + 1}) var<storage, read> gamma: array<vec4<f32>>;
@group(0) @binding(${OUTPUT + 2}) var<storage, read> beta: array<vec4<f32>>;
@group(0) @binding(${OUTPUT + 3}) var<storage, read> running: array<vec4<f32>>;  // mean, then variance
//#end
//#if RESIDUAL
@group(0) @binding(${OUTPUT + 4}) var<storage, read> residual: array<vec4<stored>>;
//#end
