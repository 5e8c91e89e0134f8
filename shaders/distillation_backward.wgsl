// distillation backward: d_logits = (q·Σp − p) · scale · d_loss with q = softmax(logits / T). One thread
// does four classes of one row. Reference: `reference_gradient` in src/ops/distillation.rs.

struct Params {
  rows: u32, classes: u32, c4: u32, temperature: f32, scale: f32, accumulate: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> targets: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> rows: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> d_loss: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> d_logits: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 64u + thread;
  if i >= p.rows * p.c4 { return; }
  let row = i / p.c4;
  let class_index = i % p.c4 * 4u + vec4<u32>(0u, 1u, 2u, 3u);
  let q = exp((logits[i] - rows[row].x) / p.temperature) / rows[row].y;
  let d_real = (q * rows[row].w - targets[i]) * (p.scale * d_loss[0].x);
  var d = select(vec4<f32>(), d_real, class_index < vec4<u32>(p.classes));
  if p.accumulate != 0u { d += d_logits[i]; }
  d_logits[i] = d;
}
