// conv2d by Winograd's F(2×2, 3×3), second step, in registers alone: M = Σ_ci V·U at each of the 16 positions
// of a patch, and y = Aᵀ·M·A, two by two output pixels. Reference: `reference` in
// src/ops/conv2d/reference.rs, as of every convolution.
//
// As conv2d_forward_lanes.wgsl, with rows = patches. The positions are done one after the other, and
// M never leaves the registers: each position is added with its sign to the up to four pixels it
// contributes to.

override LANES: u32 = 8u;
override ROWS: u32 = 32u;  // a multiple of LANES
override COLS: u32 = 2u;
override BIAS: u32 = 0u;
// Whether to write mean and Σ(y − mean)² of every 4·ROWS pixels for batch norm; height and width are
// even then.
override STATS: u32 = 0u;
// Whether scale·y + shift follows, then + residual, then max(·, 0): a batch norm in evaluation.
override AFFINE: u32 = 0u;
override RESIDUAL: u32 = 0u;
override RELU: u32 = 0u;

struct Params {
  first: u32, images: u32, h: u32, w: u32,
  oh: u32, ow: u32, pad_h: u32, pad_w: u32,
  ci4: u32, co4: u32, accumulate: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> u: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
//#if BIAS
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
//#end
//#if STATS
@group(0) @binding(4) var<storage, read_write> partials: array<vec4<f32>>;
//#end
//#if AFFINE
@group(0) @binding(4) var<storage, read> coefficients: array<vec4<f32>>;
//#end
//#if RESIDUAL
@group(0) @binding(5) var<storage, read> residual: array<vec4<f32>>;
//#end

@compute @workgroup_size(8)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let tile = flat_group(group, groups);
  let tiles_w = (p.ow + 1u) / 2u;
  let tiles_h = (p.oh + 1u) / 2u;
  let rows = p.images * tiles_h * tiles_w;
  let row_tiles = (rows + ROWS - 1u) / ROWS;
  let m0 = tile % row_tiles * ROWS;
  let first_column = tile / row_tiles * 8u * COLS + lane;
  if first_column - lane >= p.co4 { return; }

  //#for j in 0..ROWS / LANES
  let at_${j} = min(m0 + ${j * LANES}u + lane % LANES, rows - 1u) * p.ci4;
  //#end
  //#for c in 0..COLS
  let column_${c} = min(first_column + ${c * 8}u, p.co4 - 1u);
  //#for i in 0..ROWS
  //#for o in 0..4
  var y_${i}_${c}_${o} = vec4<f32>();
  //#end
  //#end
  //#end

  for (var position = 0u; position < 16u; position++) {
    //#for c in 0..COLS
    //#for i in 0..ROWS
    var acc_${i}_${c} = vec4<f32>();
    //#end
    //#end
    let row0 = position * rows * p.ci4;
    let depth0 = position * p.ci4 * 4u;
    for (var c4 = 0u; c4 < p.ci4; c4++) {
      //#for j in 0..ROWS / LANES
      let v_${j} = v[row0 + at_${j} + c4];
      //#end
      //#for c in 0..COLS
      //#for e in 0..4
      let u_${e}_${c} = u[(depth0 + c4 * 4u + ${e}u) * p.co4 + column_${c}];
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
    // Aᵀ = [1 1 1 0; 0 1 −1 −1].
    let r = position / 4u;
    let s = position % 4u;
    let top = f32(r < 3u);
    let bottom = select(select(-1.0, 1.0, r == 1u), 0.0, r == 0u);
    let left = f32(s < 3u);
    let right = select(select(-1.0, 1.0, s == 1u), 0.0, s == 0u);
    //#for c in 0..COLS
    //#for i in 0..ROWS
    y_${i}_${c}_0 += (top * left) * acc_${i}_${c};
    y_${i}_${c}_1 += (top * right) * acc_${i}_${c};
    y_${i}_${c}_2 += (bottom * left) * acc_${i}_${c};
    y_${i}_${c}_3 += (bottom * right) * acc_${i}_${c};
    //#end
    //#end
  }

  //#for c in 0..COLS
  if first_column + ${c * 8}u < p.co4 {
    //#if BIAS
    let bias_${c} = bias[column_${c}];
    //#end
    //#if AFFINE
    let scale_${c} = coefficients[column_${c}];
    let shift_${c} = coefficients[p.co4 + column_${c}];
    //#end
    //#for i in 0..ROWS
    if m0 + ${i}u < rows {
      let m = m0 + ${i}u;
      let q = m / tiles_w;
      let image = p.first + q / tiles_h;
      //#for o in 0..4
      {
        let oh = q % tiles_h * 2u + ${o / 2}u;
        let ow = m % tiles_w * 2u + ${o % 2}u;
        if oh < p.oh && ow < p.ow {
          let at = ((image * p.oh + oh) * p.ow + ow) * p.co4 + column_${c};
          var value = y_${i}_${c}_${o};
          //#if BIAS
          value += bias_${c};
          //#end
          //#if AFFINE
          value = scale_${c} * value + shift_${c};
          //#end
          //#if RESIDUAL
          value += residual[at];
          //#end
          //#if RELU
          value = select(value, vec4<f32>(), value < vec4<f32>());
          //#end
          if p.accumulate != 0u { value += y[at]; }
          y[at] = value;
        }
      }
      //#end
    }
    //#end
    //#if STATS
    var sum = vec4<f32>();
    //#for i in 0..ROWS
    sum += select(vec4<f32>(), y_${i}_${c}_0 + y_${i}_${c}_1 + y_${i}_${c}_2 + y_${i}_${c}_3, m0 + ${i}u < rows);
    //#end
    let mean = sum / f32(4u * min(ROWS, rows - m0));
    var m2 = vec4<f32>();
    //#for i in 0..ROWS
    //#for o in 0..4
    let d_${i}_${o} = select(vec4<f32>(), y_${i}_${c}_${o} - mean, m0 + ${i}u < rows);
    m2 += d_${i}_${o} * d_${i}_${o};
    //#end
    //#end
    let chunk = (p.first * tiles_h * tiles_w + m0) / ROWS;
    partials[chunk * 2u * p.co4 + column_${c}] = mean;
    partials[(chunk * 2u + 1u) * p.co4 + column_${c}] = m2;
    //#end
  }
  //#end
}
