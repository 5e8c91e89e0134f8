// batch_norm with running statistics: the scale, shift, μ and 1/σ that batch_norm_finish.wgsl writes, from
// the running mean and variance. One thread does four channels. Reference: `reference` in
// src/ops/batch_norm/reference.rs.

struct Params { c4: u32, epsilon: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gamma: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> beta: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> running: array<vec4<f32>>;  // mean, then variance
@group(0) @binding(4) var<storage, read_write> coefficients: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let column = flat_group(group, groups) * 64u + thread;
  if column >= p.c4 { return; }
  let mean = running[column];
  let inverse = 1.0 / sqrt(running[p.c4 + column] + p.epsilon);
  let scale = gamma[column] * inverse;
  coefficients[column] = scale;
  coefficients[p.c4 + column] = beta[column] - mean * scale;
  coefficients[2u * p.c4 + column] = mean;
  coefficients[3u * p.c4 + column] = inverse;
}
