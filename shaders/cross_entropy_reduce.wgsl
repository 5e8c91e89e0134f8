// cross_entropy, over the rows: the loss, and how many rows are right. One workgroup; its 64 threads
// stride over the rows, then add up pairwise. Reference: `reference` in src/ops/cross_entropy.rs.

struct Params {
  rows: u32, classes: u32, c4: u32, smoothing: f32,
  scale: f32, lowest: f32, nan: f32, accumulate: u32,
  weighted: u32, mean_weight: f32, padding: vec2<u32>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> loss: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> stats: array<vec4<f32>>;

var<workgroup> shares: array<vec4<f32>, 64>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) thread: u32) {
  var share = vec4<f32>();
  for (var row = thread; row < p.rows; row += 64u) {
    let right = select(vec2<f32>(), vec2<f32>(1.0), vec2<f32>(rows[row].w) < vec2<f32>(1.0, 5.0));
    share += vec4<f32>(rows[row].z, right, 1.0);
  }
  shares[thread] = share;
  workgroupBarrier();
  for (var reach = 32u; reach > 0u; reach >>= 1u) {
    if thread < reach { shares[thread] += shares[thread + reach]; }
    workgroupBarrier();
  }
  if thread != 0u { return; }
  let sums = shares[0];
  let scaled = sums.x * p.scale;
  loss[0] = vec4<f32>(scaled, 0.0, 0.0, 0.0);
  stats[0] = vec4<f32>(scaled, sums.y, sums.z, sums.w);
}
