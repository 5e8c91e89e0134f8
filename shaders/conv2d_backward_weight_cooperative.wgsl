// conv2d backward by the weight on matrix units: d_w[(tap, ci), co] = Σ_pixels x[pixel at tap, ci] ·
// d_y[pixel, co]. Reference: `reference_weight` in src/ops/conv2d/reference.rs.
//
// As conv2d_forward_cooperative.wgsl with rows = (tap, ci), columns = output channels, and the sum over
// the `chunk` output image rows of the workgroup's split, DEPTH pixels a step;
// conv2d_sum.wgsl adds the splits up. The first tile keeps rows together, as x does,
// and is read by columns. An invocation keeps image, row and column of the pixel it stages. A round loads
// the next step while the units multiply this one.

//#const A_BY_ROWS = 0
//#const B_BY_ROWS = 1
//#include conv2d_params
//#include cooperative_tiles
//#include cooperative_pairs
@group(0) @binding(1) var<storage, read> x: array<packet>;
@group(0) @binding(2) var<storage, read> d_y: array<packet>;
@group(0) @binding(3) var<storage, read_write> d_w: array<vec4<f32>>;
//#if PARTS == 2
@group(0) @binding(4) var<storage, read> peaks: array<u32>;
//#end

//#const A_LANES = THREADS / DEPTH
//#const A_LOADS = BM * GROUPS / THREADS
//#const B_LOADS = DEPTH * BN / PACKET / THREADS

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32,
) {
  let ci = p.ci4 / ${PACKET / 4}u;
  let co = p.co4 / ${PACKET / 4}u;
  let row_packets = p.r * p.s * ci;
  let row_tiles = (row_packets * PACKET + BM - 1u) / BM;
  let column_tiles = (p.co4 * 4u + BN - 1u) / BN;
  let tile = flat_group(group, groups);
  let split = tile / (row_tiles * column_tiles);
  if split >= p.splits { return; }
  let row0 = tile % row_tiles * BM;
  let column0 = tile / row_tiles % column_tiles * BN;

  //#if PARTS == 2
  find_scales(thread);
  //#end

  // What this invocation stages of x: of one pixel, every A_LANES-th packet of rows. Where such a
  // packet lies from the pixel's window, beyond the last far outside of any image.
  let a_lane = thread % A_LANES;
  let a_pixel = thread / A_LANES;
  //#for j in 0..A_LOADS
  let packet_${j} = row0 / PACKET + a_lane + ${j * A_LANES}u;
  let tap_${j} = packet_${j} / ci;
  let dh_${j} = select(i32(tap_${j} / p.s) - i32(p.pad_h), -0x40000000, packet_${j} >= row_packets);
  let dw_${j} = i32(tap_${j} % p.s) - i32(p.pad_w);
  let from_here_${j} = (dh_${j} * i32(p.w) + dw_${j}) * i32(ci) + i32(packet_${j} % ci);
  //#end
  // And of d_y: a packet of columns, of every THREADS / (BN / PACKET)-th pixel. Past the last pixel stands any
  // other, which x has only zeros for, and past the last column any other, whose sums are not stored.
  let column = min(column0 / PACKET + thread % ${BN / PACKET}u, co - 1u);
  let last_pixel = p.n * p.oh * p.ow - 1u;
  let b_pixel = thread / ${BN / PACKET}u;

  let part_row = subgroup % ${BM / SM}u * SM;
  let part_column = subgroup / ${BM / SM}u * SN;
  //#for i in 0..SM / SIDE
  //#for j in 0..SN / SIDE
  var acc_${i}_${j} = coop_mat${SIDE}x${SIDE}<f32, C>();
  //#end
  //#end

  let first = split * p.chunk * p.ow;
  let last = min((split + 1u) * p.chunk, p.n * p.oh) * p.ow;
  var pixel = first + a_pixel;
  var ow = pixel % p.ow;
  var oh = pixel / p.ow % p.oh;
  var image = pixel / p.ow / p.oh;
  var k_b = first + b_pixel;
  let steps = (last - first + DEPTH - 1u) / DEPTH;
  //#for ahead in 0..2
  //#if ahead
  for (var step = 0u; step < steps; step++) {
  //#else
  {
  //#end
    let h = select(i32(oh * p.stride_h), -0x40000000, pixel >= last);
    let w = i32(ow * p.stride_w);
    let here = i32(((image * p.h + oh * p.stride_h) * p.w + ow * p.stride_w) * ci);
    //#for j in 0..A_LOADS
    let a_live_${j} = (u32(h + dh_${j}) < p.h) & (u32(w + dw_${j}) < p.w);
    let a_${j} = x[select(0, here + from_here_${j}, a_live_${j})];
    //#end
    pixel += DEPTH;
    ow += DEPTH;
    while ow >= p.ow {
      ow -= p.ow;
      oh++;
      if oh == p.oh { oh = 0u; image++; }
    }
    //#for j in 0..B_LOADS
    let k_${j} = k_b + ${j * THREADS * PACKET / BN}u;
    let b_${j} = d_y[min(k_${j}, last_pixel) * co + column];
    //#end
    k_b += DEPTH;
    //#if ahead
    //#include cooperative_multiply
    workgroupBarrier();
    //#end
    //#for j in 0..A_LOADS
    stage_a(a_pixel * A_STRIDE + a_lane + ${j * A_LANES}u, masked(a_${j}, a_live_${j}));
    //#end
    //#for j in 0..B_LOADS
    stage_b((b_pixel + ${j * THREADS * PACKET / BN}u) * B_STRIDE + thread % ${BN / PACKET}u, b_${j});
    //#end
    workgroupBarrier();
  }
  //#end

  let rows = rows_of_weight();
  //#include cooperative_places
  //#for j in 0..SN / WIDTH
  {
    let column4 = column0 / 4u + column_in_tile + ${j * WIDTH / 4}u;
    //#for i in 0..SM / SIDE
    //#include cooperative_sums
    //#for q in 0..QUADS
    {
      let m = row0 + row_in_tile_${q} + ${i * SIDE}u;
      let row = row_of_weight(m);
      if m < row_packets * PACKET && row != NOWHERE && column4 < p.co4 {
        d_w[(split * rows + row) * p.co4 + column4] = sums_at(band_row_${q}, band_column);
      }
    }
    //#end
    //#end
  }
  //#end
}
