// relu backward: d_x = d_y where y > 0, else 0. One thread does four numbers. Reference:
// `reference_gradient` in src/ops/relu.rs.

struct Params { count: u32, accumulate: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> y: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> d_y: array<vec4<stored>>;
@group(0) @binding(3) var<storage, read_write> d_x: array<vec4<stored>>;

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 256u + thread;
  if i >= p.count { return; }
  var d = select(vec4<f32>(), vec4<f32>(d_y[i]), y[i] > vec4<stored>());
  if p.accumulate != 0u { d += vec4<f32>(d_x[i]); }
  d_x[i] = vec4<stored>(d);
}
