// Two sums over a workgroup, always in the same order.

override THREADS: u32 = 64u;

var<workgroup> parts: array<vec4<f32>, THREADS>;
var<workgroup> dots: array<vec4<f32>, THREADS>;

// Leaves the sums in parts[0] and dots[0].
fn add_up(thread: u32, sum: vec4<f32>, dot: vec4<f32>) {
  parts[thread] = sum;
  dots[thread] = dot;
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if thread < half {
      parts[thread] += parts[thread + half];
      dots[thread] += dots[thread + half];
    }
  }
  workgroupBarrier();
}
