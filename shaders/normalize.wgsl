// normalize: y[pixel, c] = (byte − center[c]) · scale[c]. One thread does one pixel, whose three bytes
// lie in one or two words. Reference: `reference` in src/ops/normalize.rs.

struct Params { center: vec3<f32>, pixels: u32, scale: vec3<f32> }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> words: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<stored>>;

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 256u + thread;
  if i >= p.pixels { return; }
  let byte = i * 3u;
  let shift = byte % 4u * 8u;
  // In two steps, because a shift by all 32 bits is none at all.
  let rgb = (words[byte / 4u] >> shift) | ((words[(byte + 2u) / 4u] << (24u - shift)) << 8u);
  let value = vec3<f32>((vec3<u32>(rgb) >> vec3<u32>(0u, 8u, 16u)) & vec3<u32>(255u));
  y[i] = vec4<stored>(vec4<f32>((value - p.center) * p.scale, 0.0));
}
