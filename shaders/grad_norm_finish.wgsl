// grad_norm, second half: norm = √Σ partials, scale = min(1, max_norm / (norm + 1e-6)). One workgroup of
// 256 threads. Reference: `reference` in src/ops/grad_norm.rs.

struct Params { partials: u32, clip: u32, max_norm: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
//#include sum_of_partials
@group(0) @binding(2) var<storage, read_write> result: array<vec4<f32>>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
  let squares = sum_of_partials(thread);
  if thread != 0u { return; }
  let norm = sqrt(squares);
  let clipped = min(1.0, p.max_norm / (norm + 1e-6));
  result[0] = vec4<f32>(select(1.0, clipped, p.clip != 0u), norm, 0.0, 0.0);
}
