// cross_entropy backward: d_logits = (softmax · Σ w·t − w·t) · row's weight · scale · d_loss. One thread
// does four classes of one row. Reference: `reference_gradient` in src/ops/cross_entropy.rs.

struct Params {
  rows: u32, classes: u32, c4: u32, smoothing: f32,
  scale: f32, lowest: f32, nan: f32, accumulate: u32,
  weighted: u32, mean_weight: f32, padding: vec2<u32>,
}
struct Target { label: u32, other: u32, share: f32, weight: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> targets: array<Target>;
@group(0) @binding(3) var<storage, read> weights: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> rows: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> d_loss: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> d_logits: array<vec4<f32>>;

fn weight_of(class_index: u32) -> f32 {
  let c = min(class_index, p.classes - 1u);
  return weights[c / 4u][c % 4u];
}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 64u + thread;
  if i >= p.rows * p.c4 { return; }
  let row = i / p.c4;
  let class_index = i % p.c4 * 4u + vec4<u32>(0u, 1u, 2u, 3u);
  let t = targets[row];
  let even = p.smoothing / f32(p.classes);
  let of_label = (1.0 - p.smoothing) * t.share;
  let of_other = (1.0 - p.smoothing) * (1.0 - t.share);
  var goal = select(vec4<f32>(even), vec4<f32>(even + of_label), class_index == vec4<u32>(t.label));
  goal += select(vec4<f32>(), vec4<f32>(of_other), class_index == vec4<u32>(t.other));
  var whole = 1.0;
  if p.weighted != 0u {
    goal *= weights[i % p.c4];
    whole = of_label * weight_of(t.label) + of_other * weight_of(t.other)
      + p.smoothing * p.mean_weight;
  }
  let softmax = exp(logits[i] - rows[row].x) / rows[row].y;
  let d_real = (softmax * whole - goal) * (p.scale * t.weight * d_loss[0].x);
  var d = select(vec4<f32>(), d_real, class_index < vec4<u32>(p.classes));
  if p.accumulate != 0u { d += d_logits[i]; }
  d_logits[i] = d;
}
