// Products of matrices in registers alone: what matrix units can do at most.
//
// Every subgroup keeps CHAINS fragments of SIDE × SIDE sums, independent of each other, and takes each
// through ROUNDS·p.count steps acc ← A·B + acc of 2·SIDE³ operations. The sums are written so that
// nothing can be left out.

enable wgpu_cooperative_matrix;
diagnostic(off, derivative_uniformity);

override SIDE: u32 = 16u;    // of a fragment: 8 or 16
override CHAINS: u32 = 4u;   // too few wait for each other, too many spill
override ROUNDS: u32 = 16u;
override LANES: u32 = 32u;   // of a subgroup, which makes a workgroup

struct Params { count: u32, a: f32, b: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

var<workgroup> factor: array<vec4<stored>, ${SIDE * SIDE / 2}>;
var<workgroup> sums: array<f32, ${SIDE * SIDE}>;

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  for (var i = thread; i < ${SIDE * SIDE / 4}u; i += LANES) {
    factor[i] = vec4<stored>(stored(p.a));
    factor[${SIDE * SIDE / 4}u + i] = vec4<stored>(stored(p.b));
  }
  workgroupBarrier();
  let a = coopLoadT<coop_mat${SIDE}x${SIDE}<stored, A>>(&factor[0], ${SIDE / 4}u);
  let b = coopLoadT<coop_mat${SIDE}x${SIDE}<stored, B>>(&factor[${SIDE * SIDE / 4}], ${SIDE / 4}u);
  //#for i in 0..CHAINS
  var acc_${i} = coop_mat${SIDE}x${SIDE}<f32, C>();
  //#end
  for (var step = 0u; step < p.count; step++) {
    //#for r in 0..ROUNDS
    //#for i in 0..CHAINS
    acc_${i} = coopMultiplyAdd(a, b, acc_${i});
    //#end
    //#end
  }
  var sum = 0.0;
  //#for i in 0..CHAINS
  workgroupBarrier();
  coopStoreT(acc_${i}, &sums[0], ${SIDE}u);
  workgroupBarrier();
  sum += sums[thread];
  //#end
  y[flat_group(group, groups) * LANES + thread] = sum;
}
