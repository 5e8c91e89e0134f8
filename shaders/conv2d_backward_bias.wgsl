// conv2d backward by the bias: d_b[co] (+)= Σ_pixels d_y[pixel, co]. A workgroup sums four channels:
// each thread every 64th pixel, then the threads' sums pairwise. Reference: `reference_bias` in
// src/ops/conv2d/reference.rs.

struct Params { rows: u32, co4: u32, accumulate: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> d_y: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read_write> d_b: array<vec4<f32>>;
var<workgroup> sums: array<vec4<f32>, 64>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let column = flat_group(group, groups);
  var sum = vec4<f32>();
  if column < p.co4 {
    for (var row = thread; row < p.rows; row += 64u) { sum += vec4<f32>(d_y[row * p.co4 + column]); }
  }
  sums[thread] = sum;
  for (var half = 32u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if thread < half { sums[thread] += sums[thread + half]; }
  }
  if thread == 0u && column < p.co4 {
    sum = sums[0];
    if p.accumulate != 0u { sum += d_b[column]; }
    d_b[column] = sum;
  }
}
