// cross_entropy backward: d_logits = (softmax − target) · scale · d_loss. One thread does four
// classes of one row. Reference: `reference_gradient` in src/ops/cross_entropy.rs.

struct Params {
  rows: u32, classes: u32, c4: u32, smoothing: f32,
  scale: f32, lowest: f32, nan: f32, accumulate: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
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
  let is_label = class_index == vec4<u32>(labels[row]);
  let others = p.smoothing / f32(p.classes);
  let goal = select(vec4<f32>(others), vec4<f32>(others + (1.0 - p.smoothing)), is_label);
  let softmax = exp(logits[i] - rows[row].x) / rows[row].y;
  let d_real = (softmax - goal) * (p.scale * d_loss[0].x);
  var d = select(vec4<f32>(), d_real, class_index < vec4<u32>(p.classes));
  if p.accumulate != 0u { d += d_logits[i]; }
  d_logits[i] = d;
}
