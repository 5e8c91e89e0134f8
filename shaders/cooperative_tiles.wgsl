// What kernels for matrix units share: the sizes, and the two tiles in workgroup memory that the units
// read. Each kernel says how large those are: A_TILE and B_TILE, in groups of four numbers, as are the
// places and strides of stage_a and stage_b.

enable wgpu_cooperative_matrix;
// Whole workgroups return early or not at all; naga takes every return for one that some lanes miss.
diagnostic(off, derivative_uniformity);

override SIDE: u32 = 16u;   // of a fragment: 8 or 16
override LANES: u32 = 32u;  // of a subgroup
override BM: u32 = 64u;     // 64 or 128
override BN: u32 = 64u;     // 64 or 128
// Whether the tiles are of vec4: not on Metal, whose matrices load from pointers to single numbers.
override WIDE: u32 = 1u;

const THREADS: u32 = ${LANES * BN / 16}u;

//#if WIDE
const GROUP: u32 = 1u;
var<workgroup> a_tile: array<vec4<stored>, A_TILE>;
var<workgroup> b_tile: array<vec4<stored>, B_TILE>;

fn stage_a(at: u32, numbers: vec4<stored>) { a_tile[at] = numbers; }
fn stage_b(at: u32, numbers: vec4<stored>) { b_tile[at] = numbers; }
//#else
const GROUP: u32 = 4u;
var<workgroup> a_tile: array<stored, A_TILE * GROUP>;
var<workgroup> b_tile: array<stored, B_TILE * GROUP>;

fn stage_a(at: u32, numbers: vec4<stored>) {
  //#for e in 0..4
  a_tile[at * 4u + ${e}u] = numbers[${e}];
  //#end
}

fn stage_b(at: u32, numbers: vec4<stored>) {
  //#for e in 0..4
  b_tile[at * 4u + ${e}u] = numbers[${e}];
  //#end
}
//#end
