// conv2d backward by the input on matrix units: d_x[m, ci] = Σ_(tap, co) d_y[pixel, co] ·
// weight[tap, ci, co] over the taps at which output pixel `pixel` read input pixel m. Reference:
// `reference_data` in src/ops/conv2d/reference.rs.
//
// As conv2d_forward_cooperative.wgsl with rows = input pixels of one class modulo the stride (group.z,
// see conv2d_backward_data_lanes.wgsl) and columns = input channels. The second tile keeps output
// channels together, as the weight does, and is read by columns. In memory, x is d_y and y is d_x.

//#const A_BY_ROWS = 1
//#const B_BY_ROWS = 0
//#include conv2d_forward_memory
//#include cooperative_tiles
//#include cooperative_epilogue
//#if PARTS == 2
@group(0) @binding(4) var<storage, read> peaks: array<u32>;
//#end

//#const A_LOADS = BM * GROUPS / THREADS
//#const B_LOADS = BN * GROUPS / THREADS

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32,
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

  //#if PARTS == 2
  find_scales(thread);
  //#end

  let first_r = (class_h + p.pad_h) % p.stride_h;
  let first_s = (class_w + p.pad_w) % p.stride_w;
  let co = p.co4 / ${PACKET / 4}u;
  let lane = thread % GROUPS;
  //#for j in 0..A_LOADS
  let m_${j} = row_tile * BM + thread / GROUPS + ${j * THREADS / GROUPS}u;
  let q_${j} = m_${j} / class_columns;
  let image_${j} = q_${j} / class_rows * p.oh;
  // Output pixel reached through the class's first tap; each further tap is one pixel less. Rows past
  // the end lie far outside of any image.
  let oh_${j} = select(
    i32(q_${j} % class_rows) + (i32(class_h + p.pad_h) - i32(first_r)) / i32(p.stride_h),
    -0x40000000, m_${j} >= rows);
  let ow_${j} = i32(m_${j} % class_columns) + (i32(class_w + p.pad_w) - i32(first_s)) / i32(p.stride_w);
  let at_${j} = ((i32(image_${j}) + oh_${j}) * i32(p.ow) + ow_${j}) * i32(co);
  //#end
  // And of the weight: the same packet of input channels. Past the last tap stands any other, which d_y has
  // only zeros for, and past the last channel any other, whose sums are not stored.
  let last_row = p.r * p.s * columns - 1u;
  //#for j in 0..B_LOADS
  let column_${j} = column0 + thread / GROUPS + ${j * THREADS / GROUPS}u;
  //#end

  let part_row = subgroup % ${BM / SM}u * SM;
  let part_column = subgroup / ${BM / SM}u * SN;
  //#for i in 0..SM / SIDE
  //#for j in 0..SN / SIDE
  var acc_${i}_${j} = coop_mat${SIDE}x${SIDE}<f32, C>();
  //#end
  //#end

  // Taps of this class.
  let taps_r = (p.r + p.stride_h - 1u - first_r) / p.stride_h;
  let taps_s = (p.s + p.stride_w - 1u - first_s) / p.stride_w;
  let chunk = p.chunk / ${PACKET / 4}u;
  let first = split * chunk;
  let last = max(min(first + chunk, taps_r * taps_s * co), first);
  var k = first + lane;
  var c = k % co;
  var r = k / co / max(taps_s, 1u);
  var s = k / co % max(taps_s, 1u);
  let steps = (last - first + GROUPS - 1u) / GROUPS;
  //#for ahead in 0..2
  //#if ahead
  for (var step = 0u; step < steps; step++) {
  //#else
  {
  //#end
    while c >= co {
      c -= co;
      s++;
      if s == taps_s { s = 0u; r++; }
    }
    let tap_at = i32(c) - i32((r * p.ow + s) * co);
    let inside = k < last;
    //#for j in 0..A_LOADS
    let a_live_${j} = inside & (u32(oh_${j} - i32(r)) < p.oh) & (u32(ow_${j} - i32(s)) < p.ow);
    let a_${j} = x[select(0, at_${j} + tap_at, a_live_${j})];
    //#end
    let tap = ((first_r + r * p.stride_h) * p.s + first_s + s * p.stride_w) * columns;
    //#for j in 0..B_LOADS
    let b_${j} = weight[min(tap + column_${j}, last_row) * co + c];
    //#end
    //#if ahead
    //#include cooperative_multiply
    workgroupBarrier();
    //#end
    //#for j in 0..A_LOADS
    stage_a((thread / GROUPS + ${j * THREADS / GROUPS}u) * A_STRIDE + lane, masked(a_${j}, a_live_${j}));
    //#end
    //#for j in 0..B_LOADS
    stage_b((thread / GROUPS + ${j * THREADS / GROUPS}u) * B_STRIDE + lane, b_${j});
    //#end
    workgroupBarrier();
    k += GROUPS;
    c += GROUPS;
  }
  //#end

  //#include cooperative_places
  // The input pixels of the sums that this invocation stores.
  //#for i in 0..SM / SIDE
  //#for q in 0..QUADS
  let m_${i}_${q} = row_tile * BM + row_in_tile_${q} + ${i * SIDE}u;
  let q_${i}_${q} = m_${i}_${q} / class_columns;
  let ih_${i}_${q} = q_${i}_${q} % class_rows * p.stride_h + class_h;
  let iw_${i}_${q} = m_${i}_${q} % class_columns * p.stride_w + class_w;
  let found_${i}_${q} = ((split * p.n + q_${i}_${q} / class_rows) * p.h + ih_${i}_${q}) * p.w + iw_${i}_${q};
  let pixel_${i}_${q} = select(NOWHERE, found_${i}_${q}, m_${i}_${q} < rows);
  //#end
  //#end
  let width4 = p.ci4;
  //#include cooperative_outputs
}
