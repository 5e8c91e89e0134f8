// distillation forward, row by row: Σ p·(log p − log q) with q = softmax(logits / T), and what the gradient
// needs. A workgroup does one row; its 64 threads stride over the classes, then add up pairwise.
// Reference: `reference` in src/ops/distillation.rs.

struct Params {
  rows: u32, classes: u32, c4: u32, temperature: f32, scale: f32, accumulate: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> targets: array<vec4<f32>>;
// Of each row: the largest logit, Σ exp((logit − largest) / T), the loss, Σ targets.
@group(0) @binding(3) var<storage, read_write> rows: array<vec4<f32>>;

const LOWEST = -3.4028235e38;

var<workgroup> shares: array<vec4<f32>, 64>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = flat_group(group, groups);
  if row >= p.rows { return; }
  let first = row * p.c4;

  var largest = vec4<f32>(LOWEST);
  for (var c = thread; c < p.c4; c += 64u) {
    let real = c * 4u + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.classes);
    largest = max(largest, select(vec4<f32>(LOWEST), logits[first + c], real));
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

  var share = vec4<f32>();  // Σ exp(u), Σ p·log p, Σ p·u, Σ p
  for (var c = thread; c < p.c4; c += 64u) {
    let real = c * 4u + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.classes);
    let u = select(vec4<f32>(), (logits[first + c] - maximum) / p.temperature, real);
    let goal = targets[first + c];
    let some = real & (goal > vec4<f32>());
    let ones = vec4<f32>(1.0);
    share.x += dot(select(vec4<f32>(), exp(u), real), ones);
    share.y += dot(select(vec4<f32>(), goal * log(select(ones, goal, some)), some), ones);
    share.z += dot(select(vec4<f32>(), goal * u, some), ones);
    share.w += dot(select(vec4<f32>(), goal, some), ones);
  }
  shares[thread] = share;
  workgroupBarrier();
  for (var reach = 32u; reach > 0u; reach >>= 1u) {
    if thread < reach { shares[thread] += shares[thread + reach]; }
    workgroupBarrier();
  }
  if thread != 0u { return; }
  let sums = shares[0];
  rows[row] = vec4<f32>(maximum, sums.x, sums.y - sums.z + sums.w * log(sums.x), sums.w);
}
