// conv2d forward on matrix units: y[m, co] = Σ_(tap, ci) x[pixel m at tap, ci] · weight[tap, ci, co].
// Reference: `reference` in src/ops/conv2d/reference.rs.
//
// For adapters with cooperative matrices, whose fragments of SIDE × SIDE numbers belong to a whole
// subgroup of LANES invocations. A workgroup computes BM output pixels × BN output channels, its
// subgroups BM/2 × 32 each. The sum runs over (tap, ci), or the `chunk` groups of four of these that are
// the workgroup's share, in steps of 32: eight groups of four channels, each invocation staging one such
// group of some rows, whose tap and channel it keeps. A round loads its step while the units multiply the
// one before.
// Rows of the tiles have a gap of two vec4 that spreads them over the memory banks. Fragments have no
// elements that could be reached, so the sums pass through workgroup memory, a band at a time.

//#include cooperative_tiles
//#include conv2d_forward_memory
//#if PARTS == 2
@group(0) @binding(${4 + BIAS + STATS + 3 * AFFINE + RESIDUAL}) var<storage, read> peaks: array<u32>;
//#end

const A_STRIDE: u32 = 10u;
const A_TILE: u32 = BM * A_STRIDE;  // [row][group of 4 channels]
const B_STRIDE: u32 = ${BN / 4 + 2}u;
const B_TILE: u32 = 32u * B_STRIDE;  // [channel of 32][column / 4]
//#if STATS
var<workgroup> sums: array<vec4<f32>, THREADS>;
//#end

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32,
) {
  let rows = p.n * p.oh * p.ow;
  let row_tiles = (rows + BM - 1u) / BM;
  let tile = flat_group(group, groups);
  let row_tile = tile % row_tiles;
  let column_tiles = (p.co4 + ${BN / 4 - 1}u) / ${BN / 4}u;
  let column0 = tile / row_tiles % column_tiles * ${BN / 4}u;
  let split = tile / (row_tiles * column_tiles);
  if split >= p.splits { return; }

  //#if PARTS == 2
  find_scales(thread);
  //#end

  // What this invocation stages of x: group `thread % 8` of the step, rows thread / 8 + THREADS/8·j.
  // Rows past the end lie far outside of any image.
  //#for j in 0..BM * 128 / (LANES * BN)
  let m_${j} = row_tile * BM + thread / 8u + ${j * LANES * BN / 128}u;
  let q_${j} = m_${j} / p.ow;
  let image_${j} = q_${j} / p.oh * p.h;
  let ih_${j} = select(i32(q_${j} % p.oh * p.stride_h) - i32(p.pad_h), -0x40000000, m_${j} >= rows);
  let iw_${j} = i32(m_${j} % p.ow * p.stride_w) - i32(p.pad_w);
  let at_${j} = ((i32(image_${j}) + ih_${j}) * i32(p.w) + iw_${j}) * i32(p.ci4);
  //#end
  let first4 = split * p.chunk;
  let first_tap = (first4 + thread % 8u) / p.ci4;
  var c4 = (first4 + thread % 8u) % p.ci4;
  var r = first_tap / p.s;
  var s = first_tap % p.s;
  // And of the weight: column `thread % (BN / 4)`.
  let tx = thread % ${BN / 4}u;
  let ty = thread / ${BN / 4}u;
  let column = column0 + tx;
  let live = column < p.co4;

  // This subgroup's part of the tile.
  let part_row = subgroup % 2u * ${BM / 2}u;
  let part_column = subgroup / 2u * 8u;
  //#for i in 0..BM / 2 / SIDE
  //#for j in 0..32 / SIDE
  var acc_${i}_${j} = coop_mat${SIDE}x${SIDE}<f32, C>();
  //#end
  //#end

  let last4 = min(first4 + p.chunk, p.r * p.s * p.ci4);
  for (var k4 = first4; k4 < last4 + 8u; k4 += 8u) {
    while c4 >= p.ci4 {
      c4 -= p.ci4;
      s++;
      if s == p.s { s = 0u; r++; }
    }
    let tap_at = i32((r * p.w + s) * p.ci4 + c4);
    let inside = k4 < last4 && r < p.r;
    //#for j in 0..BM * 128 / (LANES * BN)
    var a_${j} = vec4<stored>();
    if inside && u32(ih_${j} + i32(r)) < p.h && u32(iw_${j} + i32(s)) < p.w {
      a_${j} = x[at_${j} + tap_at];
    }
    //#end
    //#for j in 0..128 / LANES
    let k_${j} = k4 * 4u + ty + ${j * LANES / 4}u;
    var b_${j} = vec4<stored>();
    if live && k_${j} < last4 * 4u { b_${j} = weight[k_${j} * p.co4 + column]; }
    //#end
    c4 += 8u;
    if k4 > first4 {
      for (var k = 0u; k < 32u; k += SIDE) {
        //#for part in 0..PARTS
        //#for i in 0..BM / 2 / SIDE
        let a_${i}_${part} = coopLoadT<coop_mat${SIDE}x${SIDE}<factor, A>>(
          &a_tile[(${part} * A_TILE + (part_row + ${i * SIDE}u) * A_STRIDE + k / 4u) * GROUP], A_STRIDE * GROUP);
        //#end
        //#end
        //#for j in 0..32 / SIDE
        //#for part in 0..PARTS
        let b_${j}_${part} = coopLoadT<coop_mat${SIDE}x${SIDE}<factor, B>>(
          &b_tile[(${part} * B_TILE + k * B_STRIDE + part_column + ${j * SIDE / 4}u) * GROUP], B_STRIDE * GROUP);
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
    stage_a((thread / 8u + ${j * LANES * BN / 128}u) * A_STRIDE + thread % 8u, a_${j});
    //#end
    //#for j in 0..128 / LANES
    stage_b((ty + ${j * LANES / 4}u) * B_STRIDE + tx, b_${j});
    //#end
    workgroupBarrier();
  }

  // From fragments to rows of four columns: SIDE rows of either half of the tile at a time.
  //#for i in 0..BM / 2 / SIDE
  workgroupBarrier();
  //#for j in 0..32 / SIDE
  let to_${i}_${j} = subgroup % 2u * ${SIDE * BN}u + subgroup / 2u * 32u + ${j * SIDE}u;
  coopStoreT(acc_${i}_${j}, &band[to_${i}_${j}], ${BN}u);
  //#end
  workgroupBarrier();
  //#for q in 0..8 * SIDE / LANES
  let row_${i}_${q} = ty + ${q * LANES / 4}u;
  var y_${i}_${q} = sums_at(row_${i}_${q} * ${BN}u + tx * 4u);
  let m_${i}_${q} = row_tile * BM + row_${i}_${q} / SIDE * ${BM / 2}u + ${i * SIDE}u + row_${i}_${q} % SIDE;
  //#end
  //#end

  //#if BIAS
  let b = bias[min(column, p.co4 - 1u)];
  //#end
  //#if AFFINE
  let affine = affine_of(min(column, p.co4 - 1u));
  //#end
  //#for i in 0..BM / 2 / SIDE
  //#for q in 0..8 * SIDE / LANES
  //#if BIAS
  y_${i}_${q} += b;
  //#end
  if live && m_${i}_${q} < rows {
    let at = (split * rows + m_${i}_${q}) * p.co4 + column;
    //#if AFFINE
    y_${i}_${q} = affine.scale * y_${i}_${q} + affine.shift;
    //#end
    //#if RESIDUAL
    y_${i}_${q} += vec4<f32>(residual[at]);
    //#end
    //#if RELU
    y_${i}_${q} = select(y_${i}_${q}, vec4<f32>(), y_${i}_${q} < vec4<f32>());
    //#end
    y[at] = vec4<written>(y_${i}_${q});
  }
  //#end
  //#end
  //#if STATS
  // Rows past the end hold zeros, and must not count.
  var sum = vec4<f32>();
  //#for i in 0..BM / 2 / SIDE
  //#for q in 0..8 * SIDE / LANES
  sum += y_${i}_${q};
  //#end
  //#end
  sums[thread] = sum;
  workgroupBarrier();
  var mean = vec4<f32>();
  for (var other = tx; other < THREADS; other += ${BN / 4}u) { mean += sums[other]; }
  mean /= f32(min(BM, rows - row_tile * BM));
  var m2 = vec4<f32>();
  //#for i in 0..BM / 2 / SIDE
  //#for q in 0..8 * SIDE / LANES
  let d_${i}_${q} = select(vec4<f32>(), y_${i}_${q} - mean, m_${i}_${q} < rows);
  m2 += d_${i}_${q} * d_${i}_${q};
  //#end
  //#end
  workgroupBarrier();
  sums[thread] = m2;
  workgroupBarrier();
  if ty == 0u && live {
    m2 = vec4<f32>();
    for (var other = tx; other < THREADS; other += ${BN / 4}u) { m2 += sums[other]; }
    partials[row_tile * 2u * p.co4 + column] = mean;
    partials[(row_tile * 2u + 1u) * p.co4 + column] = m2;
  }
  //#end
}
