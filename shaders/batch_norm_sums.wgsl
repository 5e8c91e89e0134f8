// Two sums over a workgroup of 64, always in the same order.

var<workgroup> parts: array<vec4<f32>, 64>;
var<workgroup> dots: array<vec4<f32>, 64>;

// Leaves the sums in parts[0] and dots[0].
fn add_up(thread: u32, sum: vec4<f32>, dot: vec4<f32>) {
  parts[thread] = sum;
  dots[thread] = dot;
  for (var half = 32u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if thread < half {
      parts[thread] += parts[thread + half];
      dots[thread] += dots[thread + half];
    }
  }
  workgroupBarrier();
}
