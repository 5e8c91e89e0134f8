// conv2d_sum.wgsl for both gradients of a convolution at once: that by the weight, in f32, and that by the
// input. A thread adds up four numbers of one of them, the parts always in the same order. Reference:
// `reference_data` and `reference_weight` in src/ops/conv2d/reference.rs.

// Of each, by the weight first: groups of four numbers, parts, whether to add to what is there.
struct Params { quads: vec2<u32>, parts: vec2<u32>, accumulate: vec2<u32> }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> of_weight: array<vec4<f32>>;  // [part][quad]
@group(0) @binding(2) var<storage, read> of_input: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> d_weight: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> d_input: array<vec4<stored>>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 64u + thread;
  if i < p.quads.x {
    var sum = of_weight[i];
    for (var part = 1u; part < p.parts.x; part++) { sum += of_weight[part * p.quads.x + i]; }
    if p.accumulate.x != 0u { sum += d_weight[i]; }
    d_weight[i] = sum;
    return;
  }
  let at = i - p.quads.x;
  if at >= p.quads.y { return; }
  var sum = of_input[at];
  for (var part = 1u; part < p.parts.y; part++) { sum += of_input[part * p.quads.y + at]; }
  if p.accumulate.y != 0u { sum += vec4<f32>(d_input[at]); }
  d_input[at] = vec4<stored>(sum);
}
