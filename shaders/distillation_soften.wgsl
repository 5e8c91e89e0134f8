// distillation, a teacher's part: targets (+)= scale · softmax(logits / T), row by row. A workgroup does
// one row; its 64 threads stride over the classes. Reference: `reference_softened` in
// src/ops/distillation.rs.

struct Params {
  rows: u32, classes: u32, c4: u32, temperature: f32, scale: f32, accumulate: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> targets: array<vec4<f32>>;

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

  var share = vec4<f32>();
  for (var c = thread; c < p.c4; c += 64u) {
    let real = c * 4u + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.classes);
    share += select(vec4<f32>(), exp((logits[first + c] - maximum) / p.temperature), real);
  }
  shares[thread] = share;
  workgroupBarrier();
  for (var reach = 32u; reach > 0u; reach >>= 1u) {
    if thread < reach { shares[thread] += shares[thread + reach]; }
    workgroupBarrier();
  }
  let sum = dot(shares[0], vec4<f32>(1.0));

  for (var c = thread; c < p.c4; c += 64u) {
    let real = c * 4u + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.classes);
    let softmax = exp((logits[first + c] - maximum) / p.temperature) / sum;
    var target_share = select(vec4<f32>(), softmax * p.scale, real);
    if p.accumulate != 0u { target_share += targets[first + c]; }
    targets[first + c] = target_share;
  }
}
