// The sum of p.partials numbers by the 256 threads of a workgroup, which stride over them, then add up
// pairwise: the same order always.

var<workgroup> shares: array<f32, 256>;

fn sum_of_partials(thread: u32) -> f32 {
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
  return shares[0];
}
