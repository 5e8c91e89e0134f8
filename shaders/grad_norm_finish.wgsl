// grad_norm, second half: norm = √Σ partials, scale = min(1, max_norm / (norm + 1e-6)). One workgroup;
// its 256 threads stride over the partial sums, then add up pairwise. Reference: `reference` in
// src/ops/grad_norm.rs.

struct Params { partials: u32, clip: u32, max_norm: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> result: array<vec4<f32>>;

var<workgroup> shares: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
  var share = 0.0;
  for (var i = thread; i < p.partials; i += 256u) {
    share += partials[i];
  }
  shares[thread] = share;
  workgroupBarrier();
  for (var reach = 128u; reach > 0u; reach >>= 1u) {
    if thread < reach { shares[thread] += shares[thread + reach]; }
    workgroupBarrier();
  }
  if thread != 0u { return; }
  let norm = sqrt(shares[0]);
  let clipped = min(1.0, p.max_norm / (norm + 1e-6));
  result[0] = vec4<f32>(select(1.0, clipped, p.clip != 0u), norm, 0.0, 0.0);
}
