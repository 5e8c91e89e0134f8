// Multiplications and additions in registers alone: what arithmetic the adapter can do at most.
//
// Every thread keeps CHAINS vec4s, independent of each other, and takes each through ROUNDS·p.count
// steps acc ← acc·scale + shift, eight operations on numbers of the type stored, which converge instead of
// overflowing. The sum is written so that nothing can be left out.

override CHAINS: u32 = 4u;  // too few wait for each other, too many spill
override ROUNDS: u32 = 16u;

struct Params { count: u32, scale: f32, shift: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 64u + thread;
  let scale = stored(p.scale);
  let shift = stored(p.shift);
  //#for a in 0..CHAINS
  var acc_${a} = vec4<stored>(stored(f32(thread + ${a}u) * 0.01));
  //#end
  for (var step = 0u; step < p.count; step++) {
    //#for r in 0..ROUNDS
    //#for a in 0..CHAINS
    acc_${a} = acc_${a} * scale + shift;
    //#end
    //#end
  }
  var sum = vec4<stored>();
  //#for a in 0..CHAINS
  sum += acc_${a};
  //#end
  y[i] = f32(sum.x + sum.y + sum.z + sum.w);
}
