// batch_norm statistics, first step: mean and Σ(x − mean)² of every `chunk` pixels, for four channels a
// thread; two passes over the pixels, UNROLL at a time, the second from cache. Convolutions write the same
// on the way. Reference: `reference` in src/ops/batch_norm/reference.rs.

override UNROLL: u32 = 4u;

struct Params { rows: u32, c4: u32, chunk: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 64u + thread;
  let column = i % p.c4;
  let first = i / p.c4 * p.chunk;
  if first >= p.rows { return; }
  let end = min(first + p.chunk, p.rows);
  var mean = vec4<f32>();
  for (var row = first; row < end; row += UNROLL) {
    // Loads that wait for memory together; past the end, the last row's, which do not count.
    //#for k in 0..UNROLL
    let x_${k} = vec4<f32>(x[min(row + ${k}u, end - 1u) * p.c4 + column]);
    //#end
    //#for k in 0..UNROLL
    mean += select(vec4<f32>(), x_${k}, row + ${k}u < end);
    //#end
  }
  mean /= f32(end - first);
  var m2 = vec4<f32>();
  for (var row = first; row < end; row += UNROLL) {
    //#for k in 0..UNROLL
    let d_${k} = vec4<f32>(x[min(row + ${k}u, end - 1u) * p.c4 + column]) - mean;
    //#end
    //#for k in 0..UNROLL
    m2 += select(vec4<f32>(), d_${k} * d_${k}, row + ${k}u < end);
    //#end
  }
  let at = i / p.c4 * 2u * p.c4 + column;
  partials[at] = mean;
  partials[at + p.c4] = m2;
}
