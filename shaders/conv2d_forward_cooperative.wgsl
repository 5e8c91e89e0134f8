// conv2d forward on matrix units: y[m, co] = Σ_(tap, ci) x[pixel m at tap, ci] · weight[tap, ci, co].
// Reference: `reference` in src/ops/conv2d/reference.rs.
//
// For adapters with cooperative matrices, whose fragments of SIDE × SIDE numbers belong to a whole
// subgroup of LANES invocations. A workgroup computes BM output pixels × BN output channels, its
// subgroups SM × SN each. The sum runs over (tap, ci), or the `chunk` groups of four of these that are
// the workgroup's share, in steps of DEPTH: GROUPS packets of channels, each invocation staging one such
// packet of some rows, whose tap and channel it keeps. A round loads the next step while the units multiply
// this one, and neither waits for a load nor multiplies under a condition, for which drivers would copy sums.
// Rows of the tiles have a gap of 16 bytes (f16) that spreads them over the memory banks. Fragments have no
// elements that could be reached, so the sums pass through workgroup memory, a band at a time.

//#const A_BY_ROWS = 1
//#const B_BY_ROWS = 1
//#include conv2d_forward_memory
//#include cooperative_tiles
//#include cooperative_pairs
//#include cooperative_epilogue
//#if PARTS == 2
@group(0) @binding(${4 + BIAS + STATS + 3 * AFFINE + RESIDUAL}) var<storage, read> peaks: array<u32>;
//#end

//#const A_LOADS = BM * GROUPS / THREADS
//#const B_LOADS = DEPTH * BN / PACKET / THREADS

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
  let column0 = tile / row_tiles % column_tiles * BN;
  let split = tile / (row_tiles * column_tiles);
  if split >= p.splits { return; }

  //#if PARTS == 2
  find_scales(thread);
  //#end

  // What this invocation stages of x: packet `thread % GROUPS` of the step, of every THREADS / GROUPS-th
  // row. Rows past the end lie far outside of any image.
  let ci = p.ci4 / ${PACKET / 4}u;
  let co = p.co4 / ${PACKET / 4}u;
  let lane = thread % GROUPS;
  //#for j in 0..A_LOADS
  let m_${j} = row_tile * BM + thread / GROUPS + ${j * THREADS / GROUPS}u;
  let q_${j} = m_${j} / p.ow;
  let image_${j} = q_${j} / p.oh * p.h;
  let ih_${j} = select(i32(q_${j} % p.oh * p.stride_h) - i32(p.pad_h), -0x40000000, m_${j} >= rows);
  let iw_${j} = i32(m_${j} % p.ow * p.stride_w) - i32(p.pad_w);
  let at_${j} = ((i32(image_${j}) + ih_${j}) * i32(p.w) + iw_${j}) * i32(ci);
  //#end
  let chunk = p.chunk / ${PACKET / 4}u;
  let first = split * chunk;
  let last = min(first + chunk, p.r * p.s * ci);
  var k_a = first + lane;
  var c = k_a % ci;
  var r = k_a / ci / p.s;
  var s = k_a / ci % p.s;
  // And of the weight: packet `thread % (BN / PACKET)` of a row. Past the last row stands any other, which x
  // has only zeros for, and past the last column any other, whose sums are not stored.
  let column = min(column0 / PACKET + thread % ${BN / PACKET}u, co - 1u);
  let ty = thread / ${BN / PACKET}u;
  let last_row = rows_of_weight() - 1u;
  var k_b = first * PACKET + ty;

  // This subgroup's part of the tile.
  let part_row = subgroup % ${BM / SM}u * SM;
  let part_column = subgroup / ${BM / SM}u * SN;
  //#for i in 0..SM / SIDE
  //#for j in 0..SN / SIDE
  var acc_${i}_${j} = coop_mat${SIDE}x${SIDE}<f32, C>();
  //#end
  //#end

  let steps = (last - first + GROUPS - 1u) / GROUPS;
  // The first step's numbers, then each next one's. What must be zero is made so where it is staged.
  //#for ahead in 0..2
  //#if ahead
  for (var step = 0u; step < steps; step++) {
  //#else
  {
  //#end
    while c >= ci {
      c -= ci;
      s++;
      if s == p.s { s = 0u; r++; }
    }
    let tap_at = i32((r * p.w + s) * ci + c);
    let inside = k_a < last;
    //#for j in 0..A_LOADS
    let a_live_${j} = inside & (u32(ih_${j} + i32(r)) < p.h) & (u32(iw_${j} + i32(s)) < p.w);
    let a_${j} = x[select(0, at_${j} + tap_at, a_live_${j})];
    //#end
    //#for j in 0..B_LOADS
    let k_${j} = k_b + ${j * THREADS * PACKET / BN}u;
    let b_${j} = weight[min(row_of_weight(k_${j}), last_row) * co + column];
    //#end
    //#if ahead
    //#include cooperative_multiply
    workgroupBarrier();
    //#end
    //#for j in 0..A_LOADS
    //#if TAPS
    let numbers_${j} = masked(of_window(a_${j}, s), a_live_${j});
    //#else
    let numbers_${j} = masked(a_${j}, a_live_${j});
    //#end
    stage_a((thread / GROUPS + ${j * THREADS / GROUPS}u) * A_STRIDE + lane, numbers_${j});
    //#end
    //#for j in 0..B_LOADS
    stage_b((ty + ${j * THREADS * PACKET / BN}u) * B_STRIDE + thread % ${BN / PACKET}u, b_${j});
    //#end
    workgroupBarrier();
    k_a += GROUPS;
    c += GROUPS;
    k_b += DEPTH;
  }
  //#end

  //#if STATS
  let count = min(BM, rows - row_tile * BM);
  //#end
  let width4 = p.co4;
  //#include cooperative_places
  //#for i in 0..SM / SIDE
  //#for q in 0..QUADS
  let row_${i}_${q} = row_tile * BM + row_in_tile_${q} + ${i * SIDE}u;
  let pixel_${i}_${q} = select(NOWHERE, split * rows + row_${i}_${q}, row_${i}_${q} < rows);
  //#end
  //#end
  //#include cooperative_outputs
}
