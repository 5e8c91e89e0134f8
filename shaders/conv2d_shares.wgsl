// Sums that threads of a workgroup of 64 share: SHARES of them each QUADS sums, a thread what every SHARES-th part
// comes to. All threads must call this together; the sum is there for the first QUADS.

override SHARES: u32 = 1u;
const QUADS: u32 = 64u / SHARES;

//#if SHARES > 1
var<workgroup> shares: array<vec4<f32>, 64>;

fn sum_of_shares(thread: u32, share: vec4<f32>) -> vec4<f32> {
  shares[thread] = share;
  workgroupBarrier();
  var sum = share;
  for (var other = thread + QUADS; other < 64u; other += QUADS) { sum += shares[other]; }
  return sum;
}
//#else
fn sum_of_shares(thread: u32, share: vec4<f32>) -> vec4<f32> { return share; }
//#end
