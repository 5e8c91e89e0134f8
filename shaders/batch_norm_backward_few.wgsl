// batch_norm backward with batch statistics for few pixels: the three steps of
// batch_norm_backward_reduce.wgsl, _finish.wgsl and _apply.wgsl at once. A workgroup does four channels of
// all pixels. Reference: `reference_gradient` in src/ops/batch_norm/reference.rs.

//#include batch_norm_sums
//#include batch_norm_through
override RESIDUAL: u32 = 0u;  // whether the residual's gradient is wanted
override BETA: u32 = 1u;      // whether d_beta is wanted
override GAMMA: u32 = 1u;     // whether d_gamma is wanted

struct Params {
  rows: u32, c4: u32, accumulate: u32, accumulate_residual: u32,
  accumulate_beta: u32, accumulate_gamma: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> d_y: array<vec4<stored>>;
@group(0) @binding(3) var<storage, read> coefficients: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> d_x: array<vec4<stored>>;
//#if MASK == 2
@group(0) @binding(5) var<storage, read> y: array<vec4<stored>>;
//#end
//#if RESIDUAL
@group(0) @binding(${5 + (MASK == 2)}) var<storage, read_write> d_residual: array<vec4<stored>>;
//#end
//#if BETA
@group(0) @binding(${5 + (MASK == 2) + RESIDUAL}) var<storage, read_write> d_beta: array<vec4<f32>>;
//#end
//#if GAMMA
@group(0) @binding(${5 + (MASK == 2) + RESIDUAL + BETA}) var<storage, read_write> d_gamma: array<vec4<f32>>;
//#end

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let column = flat_group(group, groups);
  if column >= p.c4 { return; }
  let scale = coefficients[column];
  let shift = coefficients[p.c4 + column];
  let mean = coefficients[2u * p.c4 + column];
  let inverse = coefficients[3u * p.c4 + column];
  var sum = vec4<f32>();
  var dot = vec4<f32>();
  for (var row = thread; row < p.rows; row += THREADS) {
    let at = row * p.c4 + column;
    let d = through(at, scale, shift);
    sum += d;
    dot += d * ((vec4<f32>(x[at]) - mean) * inverse);
  }
  add_up(thread, sum, dot);
  sum = parts[0];
  dot = dots[0];
  let average = sum / f32(p.rows);
  let slope = dot * inverse / f32(p.rows);
  for (var row = thread; row < p.rows; row += THREADS) {
    let at = row * p.c4 + column;
    var d = through(at, scale, shift);
    //#if RESIDUAL
    var r = d;
    if p.accumulate_residual != 0u { r += vec4<f32>(d_residual[at]); }
    d_residual[at] = vec4<stored>(r);
    //#end
    d -= average + (vec4<f32>(x[at]) - mean) * slope;
    d *= scale;
    if p.accumulate != 0u { d += vec4<f32>(d_x[at]); }
    d_x[at] = vec4<stored>(d);
  }
  if thread == 0u {
    //#if BETA
    if p.accumulate_beta != 0u { sum += d_beta[column]; }
    d_beta[column] = sum;
    //#end
    //#if GAMMA
    if p.accumulate_gamma != 0u { dot += d_gamma[column]; }
    d_gamma[column] = dot;
    //#end
  }
}
