// What a kernel needs for what follows its sums (cooperative_outputs.wgsl).

// Whether to add to what y holds.
override ACCUMULATE: u32 = 0u;

//#if STATS
//#const SHARES = 4
var<workgroup> shares: array<vec4<f32>, ${SHARES * BAND_COLUMNS}>;

// Sums over a workgroup's rows of what its threads have of their columns, through the band: a few shares
// of each first.
fn sum_of_rows(thread: u32, mine: vec4<f32>) -> vec4<f32> {
  workgroupBarrier();
  to_band(thread, mine);
  workgroupBarrier();
  if thread < ${SHARES * BAND_COLUMNS}u {
    var share = vec4<f32>();
    //#for other in 0..THREADS / SHARES / BAND_COLUMNS
    share += from_band(thread + ${other * SHARES * BAND_COLUMNS}u);
    //#end
    shares[thread] = share;
  }
  workgroupBarrier();
  var sum = vec4<f32>();
  //#for share in 0..SHARES
  sum += shares[thread % BAND_COLUMNS + ${share * BAND_COLUMNS}u];
  //#end
  return sum;
}
//#end
