// distillation, over the rows: the loss. One workgroup; its 64 threads stride over the rows, then add up
// pairwise. Reference: `reference` in src/ops/distillation.rs.

struct Params {
  rows: u32, classes: u32, c4: u32, temperature: f32, scale: f32, accumulate: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> loss: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> stats: array<vec4<f32>>;

var<workgroup> shares: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) thread: u32) {
  var share = 0.0;
  for (var row = thread; row < p.rows; row += 64u) { share += rows[row].z; }
  shares[thread] = share;
  workgroupBarrier();
  for (var reach = 32u; reach > 0u; reach >>= 1u) {
    if thread < reach { shares[thread] += shares[thread + reach]; }
    workgroupBarrier();
  }
  if thread != 0u { return; }
  let scaled = shares[0] * p.scale;
  loss[0] = vec4<f32>(scaled, 0.0, 0.0, 0.0);
  stats[0] = vec4<f32>(scaled, 0.0, 0.0, f32(p.rows));
}
