// The two tiles in workgroup memory that matrix units read, for kernels that say how large they are:
// A_TILE and B_TILE, in groups of four numbers. Places and strides are in such groups too.

// Whether the tiles are of vec4: not on Metal, whose matrices load from pointers to single numbers.
override WIDE: u32 = 1u;

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
