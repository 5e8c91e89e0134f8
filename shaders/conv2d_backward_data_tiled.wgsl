// conv2d backward by the input with tiles in workgroup memory: d_x[m, ci] = Σ_(tap, co) d_y[pixel, co] ·
// weight[tap, ci, co] over the taps at which output pixel `pixel` read input pixel m. Reference:
// `reference_data` in src/ops/conv2d/reference.rs.
//
// For GPUs. As conv2d_forward_tiled.wgsl with rows = input pixels of one class modulo the stride
// (group.z, see conv2d_backward_data_lanes.wgsl) and columns = input channels. Both tiles keep four
// output channels together, so the product is a dot and the weight is not transposed; rows of the
// second tile are five long to spread the threads over the memory banks.

override BM: u32 = 64u;  // 64 or 128
override BN: u32 = 64u;  // 64 or 128

//#include conv2d_params
@group(0) @binding(1) var<storage, read> d_y: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<stored>>;
@group(0) @binding(3) var<storage, read_write> d_x: array<written>;

var<workgroup> a_tile: array<vec4<f32>, ${BM * 4}>;  // [row][group of 4 channels]
var<workgroup> b_tile: array<vec4<f32>, ${BN * 5}>;  // [column][group of 4 channels, and a gap]

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  // Last the classes that have the fewest taps where windows stand around their pixels: they fill up the last round.
  let class_h = (groups.z - 1u - group.z) / p.stride_w;
  let class_w = (groups.z - 1u - group.z) % p.stride_w;
  if class_h >= p.h || class_w >= p.w { return; }
  let class_rows = (p.h - class_h + p.stride_h - 1u) / p.stride_h;
  let class_columns = (p.w - class_w + p.stride_w - 1u) / p.stride_w;
  let rows = p.n * class_rows * class_columns;
  let row_tiles = (rows + BM - 1u) / BM;
  let columns = p.ci4 * 4u;
  let tile = flat_group(group, groups);
  let row_tile = tile % row_tiles;
  let column_tiles = (columns + BN - 1u) / BN;
  let column0 = tile / row_tiles % column_tiles * BN;
  let split = tile / (row_tiles * column_tiles);
  if split >= p.splits { return; }
  let tx = thread % 16u;
  let ty = thread / 16u;

  let first_r = (class_h + p.pad_h) % p.stride_h;
  let first_s = (class_w + p.pad_w) % p.stride_w;
  //#for j in 0..BM / 64
  let m_${j} = row_tile * BM + thread / 4u + ${j * 64}u;
  let q_${j} = m_${j} / class_columns;
  let image_${j} = q_${j} / class_rows * p.oh;
  // Output pixel reached through the class's first tap; each further tap is one pixel less.
  let oh_${j} = i32(q_${j} % class_rows) + (i32(class_h + p.pad_h) - i32(first_r)) / i32(p.stride_h);
  let ow_${j} = i32(m_${j} % class_columns) + (i32(class_w + p.pad_w) - i32(first_s)) / i32(p.stride_w);
  //#end
  //#for i in 0..BM / 16
  //#for j in 0..BN / 16
  var acc_${i}_${j} = 0.0;
  //#end
  //#end

  // Taps of this class.
  let taps_r = (p.r + p.stride_h - 1u - first_r) / p.stride_h;
  let taps_s = (p.s + p.stride_w - 1u - first_s) / p.stride_w;
  let first4 = split * p.chunk;
  let last4 = min(first4 + p.chunk, taps_r * taps_s * p.co4);
  let first_tap = (first4 + thread % 4u) / p.co4;
  var c4 = (first4 + thread % 4u) % p.co4;
  var r = first_tap / max(taps_s, 1u);
  var s = first_tap % max(taps_s, 1u);
  for (var k4 = first4; k4 < last4 + 4u; k4 += 4u) {
    while c4 >= p.co4 {
      c4 -= p.co4;
      s++;
      if s == taps_s { s = 0u; r++; }
    }
    //#for j in 0..BM / 64
    let h_${j} = u32(oh_${j} - i32(r));
    let w_${j} = u32(ow_${j} - i32(s));
    var a_${j} = vec4<f32>();
    if m_${j} < rows && k4 < last4 && r < taps_r && h_${j} < p.oh && w_${j} < p.ow {
      a_${j} = vec4<f32>(d_y[((image_${j} + h_${j}) * p.ow + w_${j}) * p.co4 + c4]);
    }
    //#end
    let tap = ((first_r + r * p.stride_h) * p.s + first_s + s * p.stride_w) * columns;
    //#for j in 0..BN / 64
    let column_${j} = column0 + thread / 4u + ${j * 64}u;
    var b_${j} = vec4<f32>();
    if k4 < last4 && r < taps_r && column_${j} < columns {
      b_${j} = vec4<f32>(weight[(tap + column_${j}) * p.co4 + c4]);
    }
    //#end
    c4 += 4u;
    if k4 > first4 {
      //#for g in 0..4
      {
        //#for i in 0..BM / 16
        let a_${i} = a_tile[(ty + ${i * 16}u) * 4u + ${g}u];
        //#end
        //#for j in 0..BN / 16
        let b_${j} = b_tile[(tx + ${j * 16}u) * 5u + ${g}u];
        //#for i in 0..BM / 16
        acc_${i}_${j} += dot(a_${i}, b_${j});
        //#end
        //#end
      }
      //#end
    }
    workgroupBarrier();
    //#for j in 0..BM / 64
    a_tile[thread + ${j * 256}u] = a_${j};
    //#end
    //#for j in 0..BN / 64
    b_tile[(thread / 4u + ${j * 64}u) * 5u + thread % 4u] = b_${j};
    //#end
    workgroupBarrier();
  }

  //#for i in 0..BM / 16
  {
    let m = row_tile * BM + ty + ${i * 16}u;
    if m < rows {
      let q = m / class_columns;
      let ih = q % class_rows * p.stride_h + class_h;
      let iw = m % class_columns * p.stride_w + class_w;
      let pixel = ((split * p.n + q / class_rows) * p.h + ih) * p.w + iw;
      let base = pixel * columns + column0 + tx;
      //#for j in 0..BN / 16
      if column0 + tx + ${j * 16}u < columns {
        if p.accumulate != 0u { acc_${i}_${j} += f32(d_x[base + ${j * 16}u]); }
        d_x[base + ${j * 16}u] = written(acc_${i}_${j});
      }
      //#end
    }
  }
  //#end
}
