// conv2d on matrix units, by windows that leave an image the size it is, forward or (DATA) backward by the
// input: y[pixel, co] = Σ_(tap, ci) x[pixel at tap, ci] · weight[tap, ci, co], where backward x is d_y, y is
// d_x, and the weight's taps and channels change places. Reference: `reference` and `reference_data` in
// src/ops/conv2d/reference.rs.
//
// The rows of the product are places: the pixels of all images one after the other, with a gap after each row of an
// image, which is the padding of two rows at once. So each tap of a row of the window finds what it reads a place
// after the tap before it, wherever the window stands: a workgroup stages BM places of an image row above or below,
// DEPTH channels of them, for all SPAN taps of that row. All but the last SPAN - 1 places have all they need, and
// these are written but for gaps. Otherwise as conv2d_forward_cooperative.wgsl.

override DATA: u32 = 0u;

//#const A_BY_ROWS = 1
//#if DATA
//#const B_BY_ROWS = 0
//#else
//#const B_BY_ROWS = 1
//#end
//#include conv2d_forward_memory
//#include cooperative_tiles
//#include cooperative_epilogue

//#const PLACES = BM - SPAN + 1
//#const A_LOADS = BM * GROUPS / THREADS
//#const B_LOADS = SPAN * DEPTH * BN / PACKET / THREADS

// Places of a row of an image, with its gap.
fn pitch() -> u32 { return p.w + p.pad_w; }

// The pixel at a place; NOWHERE in gaps and after all images.
fn pixel_at(place: u32) -> u32 {
  let row = place / pitch();
  let column = place % pitch();
  return select(NOWHERE, row * p.w + column, column < p.w && row < p.n * p.h);
}

// How many pixels lie before a place.
fn pixels_before(place: u32) -> u32 {
  let whole = place / pitch() * p.w + min(place % pitch(), p.w);
  return min(whole, p.n * p.h * p.w);
}

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32,
) {
  let row_tiles = (p.n * p.h * pitch() + ${PLACES - 1}u) / ${PLACES}u;
  let tile = flat_group(group, groups);
  let row_tile = tile % row_tiles;
  let column0 = tile / row_tiles * BN;
  let columns = p.co4 * 4u;
  if column0 >= columns { return; }

  // What this invocation stages of x: packet `thread % GROUPS` of the step's channels, of every
  // THREADS / GROUPS-th place. Gaps lie far outside of any image, as do places before the first, whose
  // numbers wrap around.
  let ci = p.ci4 / ${PACKET / 4}u;
  let lane = thread % GROUPS;
  //#for j in 0..A_LOADS
  let place_${j} = row_tile * ${PLACES}u + thread / GROUPS + ${j * THREADS / GROUPS}u - p.pad_w;
  let row_${j} = place_${j} / pitch();
  let column_${j} = place_${j} % pitch();
  let is_pixel_${j} = column_${j} < p.w && row_${j} < p.n * p.h;
  let h_${j} = select(-0x40000000, i32(row_${j} % p.h) - i32(p.pad_h), is_pixel_${j});
  let at_${j} = (i32(row_${j} * p.w + column_${j}) - i32(p.pad_h * p.w)) * i32(ci) + i32(lane);
  //#end
  // And of the weight, of every row of it that the step needs. Past the last row or column stands any other, which x
  // has only zeros for or whose sums are not stored.
  //#if DATA
  let last_row = p.r * SPAN * columns - 1u;
  //#else
  let last_row = p.r * SPAN * p.ci4 * 4u - 1u;
  let co = p.co4 / ${PACKET / 4}u;
  let column = min(column0 / PACKET + thread % ${BN / PACKET}u, co - 1u);
  //#end

  let part_row = subgroup % ${BM / SM}u * SM;
  let part_column = subgroup / ${BM / SM}u * SN;
  //#for i in 0..SM / SIDE
  //#for j in 0..SN / SIDE
  var acc_${i}_${j} = coop_mat${SIDE}x${SIDE}<f32, C>();
  //#end
  //#end

  // The window's row, and the first packet of channels.
  var r = 0u;
  var c = 0u;
  let steps = p.r * (ci / GROUPS);
  //#for ahead in 0..2
  //#if ahead
  for (var step = 0u; step < steps; step++) {
  //#else
  {
  //#end
    let tap_at = i32(r * p.w * ci + c);
    //#for j in 0..A_LOADS
    let a_live_${j} = (c < ci) & (u32(h_${j} + i32(r)) < p.h);
    let a_${j} = x[select(0, at_${j} + tap_at, a_live_${j})];
    //#end
    //#for j in 0..B_LOADS
    //#if DATA
    // Taps in reverse order, and of each the rows that are d_x's channels.
    let term_${j} = thread / GROUPS + ${j * THREADS / GROUPS}u;
    let tap_${j} = (p.r - 1u - r) * SPAN + SPAN - 1u - term_${j} / BN;
    let b_row_${j} = min(tap_${j} * columns + column0 + term_${j} % BN, last_row);
    let b_${j} = weight[b_row_${j} * ci + min(c, ci - GROUPS) + lane];
    //#else
    let term_${j} = thread / ${BN / PACKET}u + ${j * THREADS * PACKET / BN}u;
    let b_row_${j} = ((r * SPAN + term_${j} / DEPTH) * ci + c) * PACKET + term_${j} % DEPTH;
    let b_${j} = weight[min(b_row_${j}, last_row) * co + column];
    //#end
    //#end
    //#if ahead
    //#include cooperative_multiply
    workgroupBarrier();
    //#end
    //#for j in 0..A_LOADS
    stage_a((thread / GROUPS + ${j * THREADS / GROUPS}u) * A_STRIDE + lane, masked(a_${j}, a_live_${j}));
    //#end
    //#for j in 0..B_LOADS
    //#if DATA
    stage_b(term_${j} % BN * B_STRIDE + term_${j} / BN * GROUPS + lane, b_${j});
    //#else
    stage_b(term_${j} * B_STRIDE + thread % ${BN / PACKET}u, b_${j});
    //#end
    //#end
    workgroupBarrier();
    r++;
    if r == p.r { r = 0u; c += GROUPS; }
  }
  //#end

  //#if STATS
  let count = pixels_before((row_tile + 1u) * ${PLACES}u) - pixels_before(row_tile * ${PLACES}u);
  //#end
  let width4 = p.co4;
  //#include cooperative_places
  //#for i in 0..SM / SIDE
  //#for q in 0..QUADS
  let row_in_tile_${i}_${q} = row_in_tile_${q} + ${i * SIDE}u;
  let found_${i}_${q} = pixel_at(row_tile * ${PLACES}u + row_in_tile_${i}_${q});
  let pixel_${i}_${q} = select(NOWHERE, found_${i}_${q}, row_in_tile_${i}_${q} < ${PLACES}u);
  //#end
  //#end
  //#include cooperative_outputs
}
