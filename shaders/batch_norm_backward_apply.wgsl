// batch_norm backward, last step: d_x = scale·(d_z − Σd_z/m − x̂·Σ(d_z·x̂)/m) with batch statistics
// (BATCH = 1), scale·d_z with running ones; the residual's gradient is d_z. One thread does four channels
// of ROWS pixels, UNROLL at a time. Reference: `reference_gradient` in src/ops/batch_norm/reference.rs.

//#include batch_norm_through
override ROWS: u32 = 8u;
override UNROLL: u32 = 4u;
override BATCH: u32 = 0u;
override RESIDUAL: u32 = 0u;  // whether the residual's gradient is wanted

struct Params { rows: u32, c4: u32, accumulate: u32, accumulate_residual: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> d_y: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> coefficients: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> d_x: array<vec4<stored>>;
//#if MASK == 2
@group(0) @binding(4) var<storage, read> y: array<vec4<stored>>;
//#end
//#if RESIDUAL
@group(0) @binding(${4 + (MASK == 2)}) var<storage, read_write> d_residual: array<vec4<stored>>;
//#end
//#if BATCH
@group(0) @binding(${4 + (MASK == 2) + RESIDUAL}) var<storage, read> sums: array<vec4<f32>>;
//#end
//#if BATCH + (MASK == 1)
@group(0) @binding(${4 + (MASK == 2) + RESIDUAL + BATCH}) var<storage, read> x: array<vec4<stored>>;
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
  //#if BATCH
  let mean = coefficients[2u * p.c4 + column];
  let inverse = coefficients[3u * p.c4 + column];
  let average = sums[column] / f32(p.rows);
  let slope = sums[p.c4 + column] * inverse / f32(p.rows);
  //#end
  let end = min(first + ROWS, p.rows);
  for (var row = first; row < end; row += UNROLL) {
    // All loads before the first store, so that they wait for memory together; past the end, the last row's.
    //#for k in 0..UNROLL
    let at_${k} = min(row + ${k}u, end - 1u) * p.c4 + column;
    var r_${k} = through(at_${k}, scale, shift);
    var d_${k} = r_${k};
    //#if BATCH
    d_${k} -= average + (vec4<f32>(x[at_${k}]) - mean) * slope;
    //#end
    d_${k} *= scale;
    //#end
    if p.accumulate != 0u {
      //#for k in 0..UNROLL
      d_${k} += vec4<f32>(d_x[at_${k}]);
      //#end
    }
    //#if RESIDUAL
    if p.accumulate_residual != 0u {
      //#for k in 0..UNROLL
      r_${k} += vec4<f32>(d_residual[at_${k}]);
      //#end
    }
    //#end
    //#for k in 0..UNROLL
    if row + ${k}u < end {
      d_x[at_${k}] = vec4<stored>(d_${k});
      //#if RESIDUAL
      d_residual[at_${k}] = vec4<stored>(r_${k});
      //#end
    }
    //#end
  }
}
