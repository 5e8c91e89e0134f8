// Helpers shared by all kernels; no bindings, no entry points.

// Whether activations, their gradients, and the weights that convolutions read are stored in f16.
// Arithmetic is in f32 all the same: kernels convert what they load, and what they store.
override HALF: u32 = 0u;
//#if HALF
enable f16;
alias stored = f16;
//#else
alias stored = f32;
//#end

// Number of this workgroup where a one-dimensional dispatch was folded into two dimensions, because
// an adapter need not take more than 65,535 workgroups along one.
fn flat_group(group: vec3<u32>, groups: vec3<u32>) -> u32 {
  return group.y * groups.x + group.x;
}

// Whether a number is neither NaN nor infinite, by its bits: compilers may assume that it is.
fn is_finite(x: f32) -> bool {
  return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

// Which of four numbers are NaN, by their bits: compilers may assume that x == x.
fn is_nan(x: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}
