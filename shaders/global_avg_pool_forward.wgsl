// global_avg_pool forward: y[n, c] = scale · Σ x[n, pixel, c]. One thread adds up four channels of
// one image, pixel after pixel. Reference: `reference` in src/ops/global_avg_pool.rs.

struct Params { n: u32, pixels: u32, c4: u32, scale: f32, accumulate: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 64u + thread;
  if i >= p.n * p.c4 { return; }
  let first = i / p.c4 * p.pixels * p.c4 + i % p.c4;
  var sum = vec4<f32>();
  for (var pixel = 0u; pixel < p.pixels; pixel++) {
    sum += vec4<f32>(x[first + pixel * p.c4]);
  }
  y[i] = sum * p.scale;
}
