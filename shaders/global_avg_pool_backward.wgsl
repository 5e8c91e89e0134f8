// global_avg_pool backward: d_x[n, pixel, c] = scale · d_y[n, c]. One thread does four channels of
// one pixel. Reference: `reference_gradient` in src/ops/global_avg_pool.rs.

struct Params { n: u32, pixels: u32, c4: u32, scale: f32, accumulate: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> d_y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> d_x: array<vec4<stored>>;

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 256u + thread;
  if i >= p.n * p.pixels * p.c4 { return; }
  var d = d_y[i / p.c4 / p.pixels * p.c4 + i % p.c4] * p.scale;
  if p.accumulate != 0u { d += vec4<f32>(d_x[i]); }
  d_x[i] = vec4<stored>(d);
}
