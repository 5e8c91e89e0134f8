// grad_norm, first half: partials[first + group] = Σ g² over a workgroup's share of an arena. The 256
// threads of all workgroups stride over it together; then those of one add up pairwise. Reference:
// `reference` in src/ops/grad_norm.rs.

struct Params { count: u32, first: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gradients: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;

var<workgroup> shares: array<f32, 256>;

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  var squares = vec4<f32>();
  for (var i = group.x * 256u + thread; i < p.count; i += groups.x * 256u) {
    squares += gradients[i] * gradients[i];
  }
  shares[thread] = (squares.x + squares.y) + (squares.z + squares.w);
  workgroupBarrier();
  for (var reach = 128u; reach > 0u; reach >>= 1u) {
    if thread < reach { shares[thread] += shares[thread + reach]; }
    workgroupBarrier();
  }
  if thread == 0u { partials[p.first + group.x] = shares[0]; }
}
