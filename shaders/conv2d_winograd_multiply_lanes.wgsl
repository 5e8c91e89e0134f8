// conv2d by Winograd's F(2×2, 3×3), second step, in registers alone: M = Σ_ci V·U at each of the 16 positions of a
// patch. Reference: `reference` in src/ops/conv2d/reference.rs, as of every convolution.
//
// 16 matrix products of patches × output channels, each as in conv2d_forward_lanes.wgsl with rows =
// patches. M is [position in the patch][patch][channel / 4].

override LANES: u32 = 8u;
override ROWS: u32 = 32u;  // a multiple of LANES
override COLS: u32 = 2u;

//#include conv2d_winograd_params
//#include conv2d_operands
@group(0) @binding(3) var<storage, read_write> m: array<vec4<f32>>;

@compute @workgroup_size(8)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let tile = flat_group(group, groups);
  let rows = p.images * ((p.oh + 1u) / 2u) * ((p.ow + 1u) / 2u);
  let row_tiles = (rows + ROWS - 1u) / ROWS;
  let column_tiles = (p.co4 + 8u * COLS - 1u) / (8u * COLS);
  let position = tile / (row_tiles * column_tiles);
  if position >= 16u { return; }
  let row0 = tile % row_tiles * ROWS;
  let first_column = tile / row_tiles % column_tiles * 8u * COLS + lane;

  //#for j in 0..ROWS / LANES
  let at_${j} = (position * rows + min(row0 + ${j * LANES}u + lane % LANES, rows - 1u)) * p.ci4;
  //#end
  //#for c in 0..COLS
  let column_${c} = min(first_column + ${c * 8}u, p.co4 - 1u);
  //#for i in 0..ROWS
  var acc_${i}_${c} = vec4<f32>();
  //#end
  //#end

  let depth = position * p.ci4 * 4u;
  for (var c4 = 0u; c4 < p.ci4; c4++) {
    //#for j in 0..ROWS / LANES
    let v_${j} = left_at(at_${j} + c4);
    //#end
    // One sum after the other: its four steps stay in registers.
    //#for c in 0..COLS
    //#for e in 0..4
    let u_${e}_${c} = right_at((depth + c4 * 4u + ${e}u) * p.co4 + column_${c});
    //#end
    //#for i in 0..ROWS
    //#for e in 0..4
    //#if LANES > 1
    let v_${e}_${i}_${c} = subgroupBroadcast(v_${i / LANES}[${e}], ${i % LANES}u);
    //#else
    let v_${e}_${i}_${c} = v_${i}[${e}];
    //#end
    //#end
    acc_${i}_${c} = acc_${i}_${c} + v_0_${i}_${c} * u_0_${c} + v_1_${i}_${c} * u_1_${c}
      + v_2_${i}_${c} * u_2_${c} + v_3_${i}_${c} * u_3_${c};
    //#end
    //#end
  }

  //#for c in 0..COLS
  if first_column + ${c * 8}u < p.co4 {
    //#for i in 0..ROWS
    if row0 + ${i}u < rows {
      m[(position * rows + row0 + ${i}u) * p.co4 + column_${c}] = acc_${i}_${c};
    }
    //#end
  }
  //#end
}
