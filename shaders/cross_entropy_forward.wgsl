// cross_entropy forward, row by row: what the loss, the hits and the gradient need. A workgroup does
// one row; its 64 threads stride over the classes, then add up pairwise. Reference: `reference_row`
// in src/ops/cross_entropy.rs.

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
// Of each row: the largest logit, Σ exp(logit − largest), the loss, the classes ahead of the label.
@group(0) @binding(4) var<storage, read_write> rows: array<vec4<f32>>;

var<workgroup> shares: array<vec4<f32>, 64>;

fn weight_of(class_index: u32) -> f32 {
  if p.weighted == 0u { return 1.0; }
  let c = min(class_index, p.classes - 1u);
  return weights[c / 4u][c % 4u];
}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = flat_group(group, groups);
  if row >= p.rows { return; }
  let first = row * p.c4;

  var largest = vec4<f32>(p.lowest);
  for (var c = thread; c < p.c4; c += 64u) {
    let real = c * 4u + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.classes);
    largest = max(largest, select(vec4<f32>(p.lowest), logits[first + c], real));
  }
  shares[thread] = largest;
  workgroupBarrier();
  for (var reach = 32u; reach > 0u; reach >>= 1u) {
    if thread < reach { shares[thread] = max(shares[thread], shares[thread + reach]); }
    workgroupBarrier();
  }
  let maxima = shares[0];
  let maximum = max(max(maxima.x, maxima.y), max(maxima.z, maxima.w));
  workgroupBarrier();

  let t = targets[row];
  let label = min(t.label, p.classes - 1u);
  let logit = logits[first + label / 4u][label % 4u];
  var share = vec4<f32>();  // Σ exp(x), Σ w·x, classes ahead
  for (var c = thread; c < p.c4; c += 64u) {
    let class_index = c * 4u + vec4<u32>(0u, 1u, 2u, 3u);
    let real = class_index < vec4<u32>(p.classes);
    let z = logits[first + c];
    let x = select(vec4<f32>(), z - maximum, real);
    let tied = (z == vec4<f32>(logit)) & (class_index < vec4<u32>(label));
    let ahead = real & ((z > vec4<f32>(logit)) | tied);
    let ones = vec4<f32>(1.0);
    share.x += dot(select(vec4<f32>(), exp(x), real), ones);
    var w = ones;
    if p.weighted != 0u { w = weights[c]; }
    // What is ruled out and has no weight is not there; NaN is.
    let nothing = (w == vec4<f32>()) & (x < vec4<f32>(-3.4028234e38));
    share.y += dot(select(x, vec4<f32>(), nothing), w);
    share.z += dot(select(vec4<f32>(), ones, ahead), ones);
  }
  shares[thread] = share;
  workgroupBarrier();
  for (var reach = 32u; reach > 0u; reach >>= 1u) {
    if thread < reach { shares[thread] += shares[thread + reach]; }
    workgroupBarrier();
  }
  if thread != 0u { return; }

  let sums = shares[0];
  let of_label = (1.0 - p.smoothing) * t.share * weight_of(t.label);
  var whole = of_label + p.smoothing * p.mean_weight;
  var at_labels = of_label * (logit - maximum);
  if t.share < 1.0 {  // nothing times infinity is NaN
    let other = min(t.other, p.classes - 1u);
    let of_other = (1.0 - p.smoothing) * (1.0 - t.share) * weight_of(t.other);
    whole += of_other;
    at_labels += of_other * (logits[first + other / 4u][other % 4u] - maximum);
  }
  if p.weighted == 0u { whole = 1.0; }
  var loss = whole * log(sums.x) - at_labels;
  if p.smoothing > 0.0 { loss -= p.smoothing * (sums.y / f32(p.classes)); }
  if is_nan(sums).y || max(t.label, t.other) >= p.classes {
    rows[row] = vec4<f32>(maximum, p.nan, p.nan, max(f32(p.classes), 5.0));
  } else {
    rows[row] = vec4<f32>(maximum, sums.x, loss * t.weight, sums.z);
  }
}
