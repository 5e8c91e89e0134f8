// batch_norm backward, first step: Σ d_z and Σ d_z·x̂ over every `chunk` pixels, four channels a thread,
// UNROLL pixels at a time. Reference: `reference_gradient` in src/ops/batch_norm/reference.rs.

//#include batch_norm_through
override UNROLL: u32 = 4u;

struct Params { rows: u32, c4: u32, chunk: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> d_y: array<vec4<stored>>;
@group(0) @binding(3) var<storage, read> coefficients: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> partials: array<vec4<f32>>;
//#if MASK == 2
@group(0) @binding(5) var<storage, read> y: array<vec4<stored>>;
//#end

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 64u + thread;
  let column = i % p.c4;
  let first = i / p.c4 * p.chunk;
  if first >= p.rows { return; }
  let scale = coefficients[column];
  let shift = coefficients[p.c4 + column];
  let mean = coefficients[2u * p.c4 + column];
  let inverse = coefficients[3u * p.c4 + column];
  var sum = vec4<f32>();
  var dot = vec4<f32>();
  let end = min(first + p.chunk, p.rows);
  for (var row = first; row < end; row += UNROLL) {
    // Loads that wait for memory together; past the end, the last row's, which do not count.
    //#for k in 0..UNROLL
    let at_${k} = min(row + ${k}u, end - 1u) * p.c4 + column;
    let d_${k} = select(vec4<f32>(), through(at_${k}, scale, shift), row + ${k}u < end);
    let x_${k} = vec4<f32>(x[at_${k}]);
    //#end
    //#for k in 0..UNROLL
    sum += d_${k};
    dot += d_${k} * ((x_${k} - mean) * inverse);
    //#end
  }
  let at = i / p.c4 * 2u * p.c4 + column;
  partials[at] = sum;
  partials[at + p.c4] = dot;
}
