// conv2d_sum.wgsl for both gradients of a convolution at once: that by the weight, in f32, and that by the
// input. Four numbers of one of them are a group of SHARES threads', the parts always in the same order.
// Reference: `reference_data` and `reference_weight` in src/ops/conv2d/reference.rs.

// Of each, by the weight first: groups of four numbers, parts, whether to add to what is there.
struct Params { quads: vec2<u32>, parts: vec2<u32>, accumulate: vec2<u32> }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> of_weight: array<vec4<f32>>;  // [part][quad]
@group(0) @binding(2) var<storage, read> of_input: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> d_weight: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> d_input: array<vec4<stored>>;
//#include conv2d_shares

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * QUADS + thread % QUADS;
  let is_weight = i < p.quads.x;
  let at = select(i - p.quads.x, i, is_weight);
  var share = vec4<f32>();
  if is_weight {
    for (var part = thread / QUADS; part < p.parts.x; part += SHARES) { share += of_weight[part * p.quads.x + at]; }
  } else if at < p.quads.y {
    for (var part = thread / QUADS; part < p.parts.y; part += SHARES) { share += of_input[part * p.quads.y + at]; }
  }
  var sum = sum_of_shares(thread, share);
  if thread >= QUADS { return; }
  if is_weight {
    if p.accumulate.x != 0u { sum += d_weight[at]; }
    d_weight[at] = sum;
  } else if at < p.quads.y {
    if p.accumulate.y != 0u { sum += vec4<f32>(d_input[at]); }
    d_input[at] = vec4<stored>(sum);
  }
}
