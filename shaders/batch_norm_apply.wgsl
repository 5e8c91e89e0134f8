// batch_norm forward, last step: y = scale·x + shift, then + residual, then max(·, 0), as asked. One
// thread does four channels of ROWS pixels, UNROLL at a time. Reference: `reference` in src/ops/batch_norm/reference.rs.

//#include batch_norm_normalise
override ROWS: u32 = 8u;
override UNROLL: u32 = 4u;

struct Params { rows: u32, c4: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> coefficients: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<stored>>;
//#if RESIDUAL
@group(0) @binding(4) var<storage, read> residual: array<vec4<stored>>;
//#end

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 64u + thread;
  let column = i % p.c4;
  let first = i / p.c4 * ROWS;
  if first >= p.rows { return; }
  let scale = coefficients[column];
  let shift = coefficients[p.c4 + column];
  let end = min(first + ROWS, p.rows);
  for (var row = first; row < end; row += UNROLL) {
    // All loads before the first store, so that they wait for memory together; past the end, the last row's.
    //#for k in 0..UNROLL
    let at_${k} = min(row + ${k}u, end - 1u) * p.c4 + column;
    let y_${k} = normalised(at_${k}, scale, shift);
    //#end
    //#for k in 0..UNROLL
    if row + ${k}u < end { y[at_${k}] = y_${k}; }
    //#end
  }
}
