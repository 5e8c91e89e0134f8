// conv2d backward by the input on matrix units: d_x[m, ci] = Σ_(tap, co) d_y[pixel, co] ·
// weight[tap, ci, co] over the taps at which output pixel `pixel` read input pixel m. Reference:
// `reference_data` in src/ops/conv2d/reference.rs.
//
// As conv2d_forward_cooperative.wgsl with rows = input pixels of one class modulo the stride (group.z,
// see conv2d_backward_data_lanes.wgsl) and columns = input channels. The second tile keeps output
// channels together, as the weight does, and is read by columns.

//#include cooperative_tiles

//#include conv2d_params
@group(0) @binding(1) var<storage, read> d_y: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<stored>>;
@group(0) @binding(3) var<storage, read_write> d_x: array<vec4<written>>;
//#if PARTS == 2
@group(0) @binding(4) var<storage, read> peaks: array<u32>;
//#end

const STRIDE: u32 = 10u;
const A_TILE: u32 = BM * STRIDE;  // [row][group of 4 channels]
const B_TILE: u32 = BN * STRIDE;  // [column][group of 4 channels]

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32,
) {
  let class_h = group.z / p.stride_w;
  let class_w = group.z % p.stride_w;
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

  //#if PARTS == 2
  find_scales(thread);
  //#end

  let first_r = (class_h + p.pad_h) % p.stride_h;
  let first_s = (class_w + p.pad_w) % p.stride_w;
  //#for j in 0..BM * 128 / (LANES * BN)
  let m_${j} = row_tile * BM + thread / 8u + ${j * LANES * BN / 128}u;
  let q_${j} = m_${j} / class_columns;
  let image_${j} = q_${j} / class_rows * p.oh;
  // Output pixel reached through the class's first tap; each further tap is one pixel less. Rows past
  // the end lie far outside of any image.
  let oh_${j} = select(
    i32(q_${j} % class_rows) + (i32(class_h + p.pad_h) - i32(first_r)) / i32(p.stride_h),
    -0x40000000, m_${j} >= rows);
  let ow_${j} = i32(m_${j} % class_columns) + (i32(class_w + p.pad_w) - i32(first_s)) / i32(p.stride_w);
  let at_${j} = ((i32(image_${j}) + oh_${j}) * i32(p.ow) + ow_${j}) * i32(p.co4);
  //#end

  let part_row = subgroup % 2u * ${BM / 2}u;
  let part_column = subgroup / 2u * 32u;
  //#for i in 0..BM / 2 / SIDE
  //#for j in 0..32 / SIDE
  var acc_${i}_${j} = coop_mat${SIDE}x${SIDE}<f32, C>();
  //#end
  //#end

  // Taps of this class.
  let taps_r = (p.r + p.stride_h - 1u - first_r) / p.stride_h;
  let taps_s = (p.s + p.stride_w - 1u - first_s) / p.stride_w;
  let first4 = split * p.chunk;
  let last4 = min(first4 + p.chunk, taps_r * taps_s * p.co4);
  let first_tap = (first4 + thread % 8u) / p.co4;
  var c4 = (first4 + thread % 8u) % p.co4;
  var r = first_tap / max(taps_s, 1u);
  var s = first_tap % max(taps_s, 1u);
  for (var k4 = first4; k4 < last4 + 8u; k4 += 8u) {
    while c4 >= p.co4 {
      c4 -= p.co4;
      s++;
      if s == taps_s { s = 0u; r++; }
    }
    let tap_at = i32(c4) - i32((r * p.ow + s) * p.co4);
    let inside = k4 < last4 && r < taps_r;
    //#for j in 0..BM * 128 / (LANES * BN)
    var a_${j} = vec4<stored>();
    if inside && u32(oh_${j} - i32(r)) < p.oh && u32(ow_${j} - i32(s)) < p.ow {
      a_${j} = d_y[at_${j} + tap_at];
    }
    //#end
    let tap = ((first_r + r * p.stride_h) * p.s + first_s + s * p.stride_w) * columns;
    //#for j in 0..128 / LANES
    let column_${j} = column0 + thread / 8u + ${j * LANES * BN / 128}u;
    var b_${j} = vec4<stored>();
    if inside && column_${j} < columns {
      b_${j} = weight[(tap + column_${j}) * p.co4 + c4];
    }
    //#end
    c4 += 8u;
    if k4 > first4 {
      for (var k = 0u; k < 32u; k += SIDE) {
        //#for part in 0..PARTS
        //#for i in 0..BM / 2 / SIDE
        let a_${i}_${part} = coopLoadT<coop_mat${SIDE}x${SIDE}<factor, A>>(
          &a_tile[(${part} * A_TILE + (part_row + ${i * SIDE}u) * STRIDE + k / 4u) * GROUP], STRIDE * GROUP);
        //#end
        //#end
        //#for j in 0..32 / SIDE
        //#for part in 0..PARTS
        let b_${j}_${part} = coopLoad<coop_mat${SIDE}x${SIDE}<factor, B>>(
          &b_tile[(${part} * B_TILE + (part_column + ${j * SIDE}u) * STRIDE + k / 4u) * GROUP], STRIDE * GROUP);
        //#end
        //#for i in 0..BM / 2 / SIDE
        //#for left in 0..PARTS
        //#for right in 0..PARTS - left
        acc_${i}_${j} = coopMultiplyAdd(a_${i}_${left}, b_${j}_${right}, acc_${i}_${j});
        //#end
        //#end
        //#end
        //#end
      }
    }
    workgroupBarrier();
    //#for j in 0..BM * 128 / (LANES * BN)
    stage_a((thread / 8u + ${j * LANES * BN / 128}u) * STRIDE + thread % 8u, a_${j});
    //#end
    //#for j in 0..128 / LANES
    stage_b((thread / 8u + ${j * LANES * BN / 128}u) * STRIDE + thread % 8u, b_${j});
    //#end
    workgroupBarrier();
  }

  // From fragments to rows of four columns: SIDE rows of either half of the tile at a time.
  let tx = thread % ${BN / 4}u;
  let ty = thread / ${BN / 4}u;
  let column4 = column0 / 4u + tx;
  //#for i in 0..BM / 2 / SIDE
  workgroupBarrier();
  //#for j in 0..32 / SIDE
  let to_${i}_${j} = subgroup % 2u * ${SIDE * BN}u + part_column + ${j * SIDE}u;
  coopStoreT(acc_${i}_${j}, &band[to_${i}_${j}], ${BN}u);
  //#end
  workgroupBarrier();
  //#for q in 0..8 * SIDE / LANES
  {
    let row = ty + ${q * LANES / 4}u;
    let m = row_tile * BM + row / SIDE * ${BM / 2}u + ${i * SIDE}u + row % SIDE;
    if m < rows && column4 < p.ci4 {
      var sum = sums_at(row * BN + tx * 4u);
      let q = m / class_columns;
      let ih = q % class_rows * p.stride_h + class_h;
      let iw = m % class_columns * p.stride_w + class_w;
      let at = (((split * p.n + q / class_rows) * p.h + ih) * p.w + iw) * p.ci4 + column4;
      if p.accumulate != 0u { sum += vec4<f32>(d_x[at]); }
      d_x[at] = vec4<written>(sum);
    }
  }
  //#end
  //#end
}
