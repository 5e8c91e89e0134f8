// conv2d backward by the weight, second step: d_w (+)= Σ_splits part[split], always in the same order.
// One thread sums four numbers.

struct Params { count: u32, splits: u32, accumulate: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> part: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> d_w: array<vec4<f32>>;

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 256u + thread;
  if i >= p.count { return; }
  var sum = part[i];
  for (var split = 1u; split < p.splits; split++) { sum += part[split * p.count + i]; }
  if p.accumulate != 0u { sum += d_w[i]; }
  d_w[i] = sum;
}
