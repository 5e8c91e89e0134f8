// What kernels for matrix units share: the sizes, the tiles in workgroup memory that the units read, and
// the band that sums pass through. A kernel says first whether either matrix lies in its tile by rows
// (A_BY_ROWS, B_BY_ROWS) or by columns, and reads its tensors packet by packet (conv2d_params). Parts of its
// `main` are cooperative_multiply, cooperative_places and, for each fragment, cooperative_sums.
//
// Units for f16 can multiply f32, nearly: x·s = high + low, both in f16, and a·b = high·high + high·low +
// low·high, whose error is 3·2^-22 of a·b. The scale s is a power of two by which the tensor's largest
// number comes to 2^14 or more; so far below the largest that the low part is not a normal number of f16,
// the error is up to 2^-28 of the largest.

enable wgpu_cooperative_matrix;
// Whole workgroups return early or not at all; naga takes every return for one that some lanes miss.
diagnostic(off, derivative_uniformity);

override SIDE: u32 = 16u;   // of a fragment: 8 or 16
override LANES: u32 = 32u;  // of a subgroup
// Rows and columns of a workgroup's tile, and of the part of it that a subgroup does.
override BM: u32 = 64u;
override BN: u32 = 64u;
override SM: u32 = 32u;
override SN: u32 = 32u;
override DEPTH: u32 = 32u;  // terms of a step, or of each tap that it has
// Whether the tiles are of vec4: not on Metal, whose matrices load from pointers to single numbers.
override WIDE: u32 = 1u;
// Parts in f16 that each number is split into: 2, or 1 where it is not. The tile of the second follows
// that of the first.
override PARTS: u32 = 1u;
// Taps that a step has, which all find what they read in the first tile, each a row after the one before.
override SPAN: u32 = 1u;
const NOWHERE: u32 = 0xffffffffu;

//#if PARTS == 2
enable f16;
alias factor = f16;
//#else
alias factor = stored;
//#end

//#const THREADS = LANES * (BM / SM) * (BN / SN)
//#const GROUPS = DEPTH / PACKET
// Tiles, in packets: which way they lie is the kernel's.
//#if A_BY_ROWS
//#const A_STRIDE = DEPTH / PACKET + 8 / PACKET
//#const A_TILE = (BM + SPAN - 1) * A_STRIDE
//#else
//#const A_STRIDE = BM / PACKET + 8 / PACKET
//#const A_TILE = DEPTH * A_STRIDE
//#end
//#if B_BY_ROWS
//#const B_STRIDE = BN / PACKET + 8 / PACKET
//#const B_TILE = SPAN * DEPTH * B_STRIDE
//#else
//#const B_STRIDE = SPAN * DEPTH / PACKET + 8 / PACKET
//#const B_TILE = BN * B_STRIDE
//#end

// Sums of every subgroup, of SIDE rows and as many columns of fragments as give each lane four sums or
// more, those of subgroups side by side: groups of four of [row][column], with a gap that spreads the rows
// of a fragment over the memory banks. More of a gap is more memory, and memory decides how many workgroups a
// processor holds: an H200's two of 24,576 bytes, but one of any larger (benches/results/README.md).
//#if LANES * 4 > SIDE * SIDE
//#const WIDTH = LANES * 4 / SIDE
//#else
//#const WIDTH = SIDE
//#end
//#const BAND_ROWS = BM / SM * SIDE
//#const BAND_COLUMNS = BN / SN * WIDTH / 4
//#const BAND_STRIDE = BAND_COLUMNS + 1
//#if WIDE
//#const BAND_GROUP = 1
var<workgroup> band: array<vec4<f32>, ${BAND_ROWS * BAND_STRIDE}>;

fn to_band(at: u32, numbers: vec4<f32>) { band[at] = numbers; }
fn from_band(at: u32) -> vec4<f32> { return band[at]; }
//#else
//#const BAND_GROUP = 4
var<workgroup> band: array<f32, ${BAND_ROWS * BAND_STRIDE * 4}>;

fn to_band(at: u32, numbers: vec4<f32>) {
  //#for e in 0..4
  band[at * 4u + ${e}u] = numbers[${e}];
  //#end
}

fn from_band(at: u32) -> vec4<f32> {
  return vec4<f32>(band[at * 4u], band[at * 4u + 1u], band[at * 4u + 2u], band[at * 4u + 3u]);
}
//#end
//#if OCTETS
//#const GROUP = 2
var<workgroup> a_tile: array<vec4<f16>, A_TILE * GROUP>;
var<workgroup> b_tile: array<vec4<f16>, B_TILE * GROUP>;

// What words hold: nothing is computed, and compilers see that.
fn halves(words: vec2<u32>) -> vec4<f16> {
  return vec4<f16>(vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)));
}

fn stage_a(at: u32, numbers: packet) {
  a_tile[at * 2u] = halves(numbers.xy);
  a_tile[at * 2u + 1u] = halves(numbers.zw);
}

fn stage_b(at: u32, numbers: packet) {
  b_tile[at * 2u] = halves(numbers.xy);
  b_tile[at * 2u + 1u] = halves(numbers.zw);
}
//#else
//#if WIDE
//#const GROUP = 1
var<workgroup> a_tile: array<vec4<factor>, A_TILE * PARTS>;
var<workgroup> b_tile: array<vec4<factor>, B_TILE * PARTS>;

//#if PARTS == 2
// The part of numbers that f16 can hold, rounded by the bits: compilers may take a number that was
// converted to f16 and back for the number itself.
fn high_part(numbers: vec4<f32>) -> vec4<f32> {
  let bits = bitcast<vec4<u32>>(numbers) + vec4<u32>(0x1000u);
  return bitcast<vec4<f32>>(bits & vec4<u32>(0xffffe000u));
}

fn stage_a(at: u32, numbers: vec4<f32>) {
  let scaled = numbers * scale.x;
  let high = high_part(scaled);
  a_tile[at] = vec4<f16>(high);
  a_tile[A_TILE + at] = vec4<f16>(scaled - high);
}

fn stage_b(at: u32, numbers: vec4<f32>) {
  let scaled = numbers * scale.y;
  let high = high_part(scaled);
  b_tile[at] = vec4<f16>(high);
  b_tile[B_TILE + at] = vec4<f16>(scaled - high);
}
//#else
fn stage_a(at: u32, numbers: packet) { a_tile[at] = numbers; }
fn stage_b(at: u32, numbers: packet) { b_tile[at] = numbers; }
//#end
//#else
//#const GROUP = 4
var<workgroup> a_tile: array<factor, A_TILE * GROUP>;
var<workgroup> b_tile: array<factor, B_TILE * GROUP>;

fn stage_a(at: u32, numbers: packet) {
  //#for e in 0..4
  a_tile[at * 4u + ${e}u] = numbers[${e}];
  //#end
}

fn stage_b(at: u32, numbers: packet) {
  //#for e in 0..4
  b_tile[at * 4u + ${e}u] = numbers[${e}];
  //#end
}
//#end
//#end

//#if PARTS == 2
override PEAKS: u32 = 256u;
var<workgroup> largest: array<vec2<u32>, THREADS>;
// What numbers of either tile are multiplied by, and what products of both are then multiplied by.
var<private> scale: vec2<f32>;
var<private> unscale: vec2<f32>;

// Finds the scales, from what conv2d_peaks.wgsl found of either tensor; `peaks` is the kernel's. All lanes
// do the same at the same time: with atomics, and a branch that some lanes take, NVIDIA's 580 made units
// multiply something else afterwards.
fn find_scales(thread: u32) {
  var mine = vec2<u32>();
  for (var i = thread; i < PEAKS; i += THREADS) {
    mine = max(mine, vec2<u32>(peaks[i], peaks[PEAKS + i]));
  }
  largest[thread] = mine;
  workgroupBarrier();
  var bits = vec2<u32>();
  for (var other = 0u; other < THREADS; other++) { bits = max(bits, largest[other]); }
  // Exponents, biased by 127: that of the largest number, and that which takes it to 14.
  let exponent = min(vec2<u32>(268u) - (bits >> vec2<u32>(23u)), vec2<u32>(253u));
  scale = bitcast<vec2<f32>>(exponent << vec2<u32>(23u));
  unscale = bitcast<vec2<f32>>((vec2<u32>(254u) - exponent) << vec2<u32>(23u));
}
//#end

// The numbers, or zeros.
fn masked(numbers: packet, live: bool) -> packet { return select(packet(), numbers, live); }

// Four sums of a row of the band.
fn sums_at(row: u32, column: u32) -> vec4<f32> {
  let sums = from_band(row * BAND_STRIDE + column);
  //#if PARTS == 2
  return sums * unscale.x * unscale.y;
  //#else
  return sums;
  //#end
}
