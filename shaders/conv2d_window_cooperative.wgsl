// conv2d on matrix units, by windows that leave an image the size it is, forward or (DATA) backward by the
// input: y[pixel, co] = Σ_(tap, ci) x[pixel at tap, ci] · weight[tap, ci, co], where backward x is d_y, y is
// d_x, and the weight's taps and channels change places. Reference: `reference` and `reference_data` in
// src/ops/conv2d/reference.rs.
//
// The rows of the product are places: the pixels of all images one after the other, with a gap of the
// padding's width after each image row, which is the padding of two rows at once, and of its height after
// each image. So a tap is found equally far from every place, and a tile of BM places finds all taps in
// the same BM + REACH of them. A workgroup stages these, DEPTH channels at a time, and goes through the window
// row by row, SPAN taps a step; it loads the weight of its step, and after a window's last row the places' next
// channels, while the units multiply the step before. Gaps are computed and not written: oh and ow are an
// image's height and width with them.

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

//#const A_LOADS = ((BM + REACH) * GROUPS + THREADS - 1) / THREADS
//#const B_LOADS = SPAN * DEPTH * BN / PACKET / THREADS

// The pixel at a place; NOWHERE in gaps and before and after all images.
fn pixel_at(place: i32) -> u32 {
  let line = u32(place) / p.ow;
  let column = u32(place) % p.ow;
  let image = line / p.oh;
  let row = line % p.oh;
  let live = place >= 0 && image < p.n && row < p.h && column < p.w;
  return select(NOWHERE, (image * p.h + row) * p.w + column, live);
}

// How many pixels lie before a place.
fn pixels_before(place: u32) -> u32 {
  let line = place / p.ow;
  let of_line = select(0u, min(place % p.ow, p.w), line % p.oh < p.h);
  return (line / p.oh * p.h + min(line % p.oh, p.h)) * p.w + of_line;
}

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32,
) {
  let places = p.n * p.oh * p.ow;
  let row_tiles = (places + BM - 1u) / BM;
  let tile = flat_group(group, groups);
  let row_tile = tile % row_tiles;
  let column0 = tile / row_tiles * BN;
  let columns = p.co4 * 4u;
  if column0 >= columns { return; }

  // What this invocation stages of x: packet `thread % GROUPS` of the step's channels, of every
  // THREADS / GROUPS-th place.
  let ci = p.ci4 / ${PACKET / 4}u;
  let co = p.co4 / ${PACKET / 4}u;
  let lane = thread % GROUPS;
  let place0 = i32(row_tile * BM) - i32(p.pad_h * p.ow + p.pad_w);
  //#for j in 0..A_LOADS
  let at_${j} = pixel_at(place0 + i32(thread / GROUPS + ${j * THREADS / GROUPS}u));
  var a_${j} = packet();
  //#end

  let part_row = subgroup % ${BM / SM}u * SM;
  let part_column = subgroup / ${BM / SM}u * SN;
  //#for i in 0..SM / SIDE
  //#for j in 0..SN / SIDE
  var acc_${i}_${j} = coop_mat${SIDE}x${SIDE}<f32, C>();
  //#end
  //#end

  let steps = ci / GROUPS * p.r;
  var r = 0u;
  var c = 0u;
  var shift = 0u;
  for (var step = 0u; step <= steps; step++) {
    let live = step < steps;
    if r == 0u {
      //#for j in 0..A_LOADS
      a_${j} = packet();
      if live && at_${j} != NOWHERE { a_${j} = x[at_${j} * ci + c + lane]; }
      //#end
    }
    //#for j in 0..B_LOADS
    var b_${j} = packet();
    //#if DATA
    let line_${j} = thread / GROUPS + ${j * THREADS / GROUPS}u;
    let column_${j} = column0 + line_${j} % BN;
    let tap_${j} = (p.r - 1u - r) * SPAN + SPAN - 1u - line_${j} / BN;
    if live && column_${j} < columns { b_${j} = weight[(tap_${j} * columns + column_${j}) * ci + c + lane]; }
    //#else
    let column_${j} = column0 / PACKET + thread % ${BN / PACKET}u;
    let line_${j} = thread / ${BN / PACKET}u + ${j * THREADS * PACKET / BN}u;
    let term_${j} = (r * SPAN + line_${j} / DEPTH) * ci * PACKET + c * PACKET + line_${j} % DEPTH;
    if live && column_${j} < co { b_${j} = weight[term_${j} * co + column_${j}]; }
    //#end
    //#end
    if step > 0u {
      //#include cooperative_multiply
    }
    workgroupBarrier();
    if r == 0u {
      //#for j in 0..A_LOADS
      if thread / GROUPS + ${j * THREADS / GROUPS}u < BM + REACH {
        stage_a((thread / GROUPS + ${j * THREADS / GROUPS}u) * A_STRIDE + lane, a_${j});
      }
      //#end
    }
    //#for j in 0..B_LOADS
    //#if DATA
    stage_b(line_${j} % BN * B_STRIDE + line_${j} / BN * GROUPS + lane, b_${j});
    //#else
    stage_b(line_${j} * B_STRIDE + thread % ${BN / PACKET}u, b_${j});
    //#end
    //#end
    workgroupBarrier();
    shift = r * p.ow;
    r++;
    if r == p.r { r = 0u; c += GROUPS; }
  }

  //#if STATS
  let count = pixels_before(min((row_tile + 1u) * BM, places)) - pixels_before(row_tile * BM);
  //#end
  //#include cooperative_places
  //#for i in 0..SM / SIDE
  //#for q in 0..QUADS
  let pixel_${i}_${q} = pixel_at(i32(row_tile * BM + row_in_tile_${q} + ${i * SIDE}u));
  //#end
  //#end
  //#include cooperative_outputs
}
