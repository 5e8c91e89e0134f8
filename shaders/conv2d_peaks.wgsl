// The largest absolute value of every PEAKS-th part of two tensors, as the bits of an f32; numbers that are
// not finite do not count. From these, the split kernels of cooperative_tiles.wgsl know how to scale.

struct Params { a: u32, b: u32 }  // groups of four numbers
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> peaks: array<u32>;  // [tensor][part]

override PEAKS: u32 = 256u;
const THREADS: u32 = 256u;

var<workgroup> largest: atomic<u32>;

fn peak(numbers: vec4<f32>) -> u32 {
  let bits = bitcast<vec4<u32>>(numbers) & vec4<u32>(0x7fffffffu);
  let finite = select(bits, vec4<u32>(), bits >= vec4<u32>(0x7f800000u));
  return max(max(finite.x, finite.y), max(finite.z, finite.w));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  if thread == 0u { atomicStore(&largest, 0u); }
  workgroupBarrier();
  var mine = 0u;
  let first = group.x * THREADS + thread;
  if group.y == 0u {
    for (var i = first; i < p.a; i += PEAKS * THREADS) { mine = max(mine, peak(a[i])); }
  } else {
    for (var i = first; i < p.b; i += PEAKS * THREADS) { mine = max(mine, peak(b[i])); }
  }
  atomicMax(&largest, mine);
  workgroupBarrier();
  if thread == 0u { peaks[group.y * PEAKS + group.x] = atomicLoad(&largest); }
}
