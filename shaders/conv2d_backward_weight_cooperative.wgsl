// conv2d backward by the weight on matrix units: d_w[(tap, ci), co] = Σ_pixels x[pixel at tap, ci] ·
// d_y[pixel, co]. Reference: `reference_weight` in src/ops/conv2d/reference.rs.
//
// As conv2d_forward_cooperative.wgsl with rows = (tap, ci), columns = output channels, and the sum over
// the `chunk` output image rows of the workgroup's split, 32 pixels a step;
// conv2d_sum.wgsl adds the splits up. The first tile keeps rows together, as x does,
// and is read by columns. An invocation keeps image, row and column of the pixel it stages. A round loads
// its step while the units multiply the one before.

//#include cooperative_tiles

//#include conv2d_params
@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> d_y: array<vec4<stored>>;
@group(0) @binding(3) var<storage, read_write> d_w: array<vec4<f32>>;
//#if PARTS == 2
@group(0) @binding(4) var<storage, read> peaks: array<u32>;
//#end

const A_LANES: u32 = THREADS / 32u;  // that share a pixel
const A_STRIDE: u32 = ${BM / 4 + 2}u;
const A_TILE: u32 = 32u * A_STRIDE;  // [pixel][row / 4]
const B_STRIDE: u32 = ${BN / 4 + 2}u;
const B_TILE: u32 = 32u * B_STRIDE;  // [pixel][column / 4]

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32,
) {
  let row_quads = p.r * p.s * p.ci4;
  let row_tiles = (row_quads * 4u + BM - 1u) / BM;
  let column_tiles = (p.co4 * 4u + BN - 1u) / BN;
  let tile = flat_group(group, groups);
  let split = tile / (row_tiles * column_tiles);
  if split >= p.splits { return; }
  let quad0 = tile % row_tiles * ${BM / 4}u;
  let column0 = tile / row_tiles % column_tiles * ${BN / 4}u;

  //#if PARTS == 2
  find_scales(thread);
  //#end

  // What this invocation stages of x: of one pixel, every A_LANES-th group of four rows. Where such a
  // group lies from the pixel's window, beyond the last far outside of any image.
  let a_lane = thread % A_LANES;
  let a_pixel = thread / A_LANES;
  //#for j in 0..BM * 128 / (LANES * BN)
  let quad_${j} = quad0 + a_lane + ${j}u * A_LANES;
  let tap_${j} = quad_${j} / p.ci4;
  let dh_${j} = select(i32(tap_${j} / p.s) - i32(p.pad_h), -0x40000000, quad_${j} >= row_quads);
  let dw_${j} = i32(tap_${j} % p.s) - i32(p.pad_w);
  let from_here_${j} = (dh_${j} * i32(p.w) + dw_${j}) * i32(p.ci4) + i32(quad_${j} % p.ci4);
  //#end
  // And of d_y: four columns, of THREADS / (BN/4) pixels.
  let tx = thread % ${BN / 4}u;
  let ty = thread / ${BN / 4}u;
  let column = column0 + tx;

  let part_row = subgroup % 2u * ${BM / 8}u;
  let part_column = subgroup / 2u * 8u;
  //#for i in 0..BM / 2 / SIDE
  //#for j in 0..32 / SIDE
  var acc_${i}_${j} = coop_mat${SIDE}x${SIDE}<f32, C>();
  //#end
  //#end

  let first = split * p.chunk * p.ow;
  let last = min((split + 1u) * p.chunk, p.n * p.oh) * p.ow;
  var pixel = first + a_pixel;
  var ow = pixel % p.ow;
  var oh = pixel / p.ow % p.oh;
  var image = pixel / p.ow / p.oh;
  for (var k0 = first; k0 < last + 32u; k0 += 32u) {
    let h = select(i32(oh * p.stride_h), -0x40000000, pixel >= last);
    let w = i32(ow * p.stride_w);
    let here = i32(((image * p.h + oh * p.stride_h) * p.w + ow * p.stride_w) * p.ci4);
    //#for j in 0..BM * 128 / (LANES * BN)
    var a_${j} = vec4<stored>();
    if u32(h + dh_${j}) < p.h && u32(w + dw_${j}) < p.w { a_${j} = x[here + from_here_${j}]; }
    //#end
    pixel += 32u;
    ow += 32u;
    while ow >= p.ow {
      ow -= p.ow;
      oh++;
      if oh == p.oh { oh = 0u; image++; }
    }
    //#for j in 0..128 / LANES
    let from_${j} = k0 + ty + ${j * LANES / 4}u;
    var b_${j} = vec4<stored>();
    if from_${j} < last && column < p.co4 { b_${j} = d_y[from_${j} * p.co4 + column]; }
    //#end
    if k0 > first {
      for (var k = 0u; k < 32u; k += SIDE) {
        //#for part in 0..PARTS
        //#for i in 0..BM / 2 / SIDE
        let a_${i}_${part} = coopLoad<coop_mat${SIDE}x${SIDE}<factor, A>>(
          &a_tile[(${part} * A_TILE + k * A_STRIDE + part_row + ${i * SIDE / 4}u) * GROUP], A_STRIDE * GROUP);
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
    stage_a(a_pixel * A_STRIDE + a_lane + ${j}u * A_LANES, a_${j});
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
  {
    let row = ty + ${q * LANES / 4}u;
    let m = quad0 * 4u + row / SIDE * ${BM / 2}u + ${i * SIDE}u + row % SIDE;
    if m < row_quads * 4u && column < p.co4 {
      d_w[(split * row_quads * 4u + m) * p.co4 + column] = sums_at(row * BN + tx * 4u);
    }
  }
  //#end
  //#end
}
