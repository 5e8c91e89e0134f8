// conv2d by Winograd's F(2×2, 3×3), second step, with tiles in workgroup memory: M = Σ_ci V·U at each of the 16
// positions of a patch, and y = Aᵀ·M·A, two by two output pixels. Reference: `reference` in
// src/ops/conv2d/reference.rs, as of every convolution.
//
// For GPUs. As conv2d_forward_tiled.wgsl, with rows = patches; a thread computes BM/16 patches × 4
// channels. The positions are done one after the other, and M never leaves the registers: each
// position is added with its sign to the up to four pixels it contributes to.

override BM: u32 = 64u;
override BN: u32 = 64u;
override BIAS: u32 = 0u;
// Whether to write mean and Σ(y − mean)² of every 4·BM pixels for batch norm; height and width are even
// then.
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

var<workgroup> a_tile: array<vec4<f32>, ${BM * 4}>;  // [row][group of 4 channels]
var<workgroup> b_tile: array<vec4<f32>, ${BN * 4}>;  // [channel of 16][column / 4]

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let tiles_w = (p.ow + 1u) / 2u;
  let tiles_h = (p.oh + 1u) / 2u;
  let rows = p.images * tiles_h * tiles_w;
  let row_tiles = (rows + BM - 1u) / BM;
  let tile = flat_group(group, groups);
  let row_tile = tile % row_tiles;
  let column0 = tile / row_tiles * ${BN / 4}u;
  if column0 >= p.co4 { return; }
  let tx = thread % 16u;
  let ty = thread / 16u;
  let staged = row_tile * BM + thread / 4u;
  let column = column0 + tx;
  let live = column < p.co4;

  //#for i in 0..BM / 16
  //#for o in 0..4
  var y_${i}_${o} = vec4<f32>();
  //#end
  //#end

  for (var position = 0u; position < 16u; position++) {
    //#for i in 0..BM / 16
    var acc_${i} = vec4<f32>();
    //#end
    for (var k4 = 0u; k4 < p.ci4; k4 += 4u) {
      var a = vec4<f32>();
      if staged < rows && k4 + thread % 4u < p.ci4 {
        a = v[(position * rows + staged) * p.ci4 + k4 + thread % 4u];
      }
      a_tile[thread] = a;
      var b = vec4<f32>();
      if k4 * 4u + ty < p.ci4 * 4u && live {
        b = u[((position * p.ci4 + k4) * 4u + ty) * p.co4 + column];
      }
      b_tile[thread] = b;
      workgroupBarrier();
      //#for g in 0..4
      {
        //#for i in 0..BM / 16
        let a_${i} = a_tile[(ty + ${i * 16}u) * 4u + ${g}u];
        //#end
        //#for e in 0..4
        let b_${e} = b_tile[${(g * 4 + e) * (BN / 4)}u + tx];
        //#for i in 0..BM / 16
        acc_${i} = fma(vec4(a_${i}[${e}]), b_${e}, acc_${i});
        //#end
        //#end
      }
      //#end
      workgroupBarrier();
    }
    // Aᵀ = [1 1 1 0; 0 1 −1 −1].
    let r = position / 4u;
    let s = position % 4u;
    let top = f32(r < 3u);
    let bottom = select(select(-1.0, 1.0, r == 1u), 0.0, r == 0u);
    let left = f32(s < 3u);
    let right = select(select(-1.0, 1.0, s == 1u), 0.0, s == 0u);
    //#for i in 0..BM / 16
    y_${i}_0 += (top * left) * acc_${i};
    y_${i}_1 += (top * right) * acc_${i};
    y_${i}_2 += (bottom * left) * acc_${i};
    y_${i}_3 += (bottom * right) * acc_${i};
    //#end
  }

  let m0 = row_tile * BM + ty;
  //#if BIAS
  let b = bias[min(column, p.co4 - 1u)];
  //#end
  //#if AFFINE
  let scale = coefficients[min(column, p.co4 - 1u)];
  let shift = coefficients[p.co4 + min(column, p.co4 - 1u)];
  //#end
  //#for i in 0..BM / 16
  if live && m0 + ${i * 16}u < rows {
    let m = m0 + ${i * 16}u;
    let q = m / tiles_w;
    let image = p.first + q / tiles_h;
    //#for o in 0..4
    {
      let oh = q % tiles_h * 2u + ${o / 2}u;
      let ow = m % tiles_w * 2u + ${o % 2}u;
      if oh < p.oh && ow < p.ow {
        let at = ((image * p.oh + oh) * p.ow + ow) * p.co4 + column;
        var value = y_${i}_${o};
        //#if BIAS
        value += b;
        //#end
        //#if AFFINE
        value = scale * value + shift;
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
  // Rows past the end hold zeros, and must not count.
  var sum = vec4<f32>();
  //#for i in 0..BM / 16
  sum += y_${i}_0 + y_${i}_1 + y_${i}_2 + y_${i}_3;
  //#end
  a_tile[thread] = sum;
  workgroupBarrier();
  var mean = vec4<f32>();
  for (var other = 0u; other < 16u; other++) { mean += a_tile[other * 16u + tx]; }
  mean /= f32(4u * min(BM, rows - row_tile * BM));
  var m2 = vec4<f32>();
  //#for i in 0..BM / 16
  //#for o in 0..4
  let d_${i}_${o} = select(vec4<f32>(), y_${i}_${o} - mean, m0 + ${i * 16}u < rows);
  m2 += d_${i}_${o} * d_${i}_${o};
  //#end
  //#end
  workgroupBarrier();
  a_tile[thread] = m2;
  workgroupBarrier();
  if ty == 0u && live {
    m2 = vec4<f32>();
    for (var other = 0u; other < 16u; other++) { m2 += a_tile[other * 16u + tx]; }
    let chunk = (p.first * tiles_h * tiles_w) / BM + row_tile;
    partials[chunk * 2u * p.co4 + column] = mean;
    partials[(chunk * 2u + 1u) * p.co4 + column] = m2;
  }
  //#end
}
