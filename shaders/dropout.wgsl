// dropout: y = x·m, m drawn anew from the key; also its own backward, of d_y. One thread does four
// channels of one pixel. Reference: `mask` in src/ops/dropout.rs.

struct Params {
  count: u32, row: u32, threshold: u32, scale: f32,
  site: u32, per_row: u32, accumulate: u32, padding: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> key: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<stored>>;

// Jarzynski and Olano, "Hash Functions for GPU Rendering", 2020.
fn pcg4d(words: vec4<u32>) -> vec4<u32> {
  var v = words * 1664525u + 1013904223u;
  v.x += v.y * v.w;
  v.y += v.z * v.x;
  v.z += v.x * v.y;
  v.w += v.y * v.z;
  v ^= v >> vec4<u32>(16u);
  v.x += v.y * v.w;
  v.y += v.z * v.x;
  v.z += v.x * v.y;
  v.w += v.y * v.z;
  return v;
}

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 256u + thread;
  if i >= p.count { return; }
  let row = key[0].z + i / p.row;
  let column = select(i % p.row, 0u, p.per_row != 0u);
  var words = pcg4d(vec4<u32>(key[0].x ^ (p.site * 0x9e3779b9u), key[0].y, row, column));
  if p.per_row != 0u { words = words.xxxx; }
  let mask = select(vec4<f32>(p.scale), vec4<f32>(), words < vec4<u32>(p.threshold));
  var value = vec4<f32>(x[i]) * mask;
  if p.accumulate != 0u { value += vec4<f32>(y[i]); }
  y[i] = vec4<stored>(value);
}
