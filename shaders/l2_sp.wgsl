// l2_sp, in place: gradient += scale·strength·(θ − θ₀). One thread does four parameters. Reference:
// `reference` in src/ops/l2_sp.rs.

override SCALED: u32 = 0u;  // whether there is a scale other than 1

struct Params { count: u32, strength: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> gradients: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> parameters: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> start: array<vec4<f32>>;
//#if SCALED
@group(0) @binding(4) var<storage, read> scale: array<f32>;
//#end

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 256u + thread;
  if i >= p.count { return; }
  //#if SCALED
  let strength = scale[0] * p.strength;
  //#else
  let strength = p.strength;
  //#end
  gradients[i] += strength * (parameters[i] - start[i]);
}
