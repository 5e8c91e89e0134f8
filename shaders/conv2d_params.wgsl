// What the kernels of a convolution's passes are told: `Params` in src/ops/conv2d/geometry.rs; and the type of
// what they write.

struct Params {
  n: u32, h: u32, w: u32, ci4: u32,
  oh: u32, ow: u32, co4: u32, r: u32,
  s: u32, stride_h: u32, stride_w: u32, pad_h: u32,
  pad_w: u32, accumulate: u32, splits: u32, chunk: u32,
  images_first: u32, epsilon: f32,
}
@group(0) @binding(0) var<uniform> p: Params;

// Whether several workgroups share each sum: they write parts of it, which conv2d_sum.wgsl adds up.
override SHARED: u32 = 0u;
//#if SHARED
alias written = f32;
//#else
alias written = stored;
//#end

// Whether invocations read eight f16 at a time, which takes channels in eights; else four numbers. As words, since
// drivers take it from the type whether 16 bytes can be read at once.
override OCTETS: u32 = 0u;
//#if OCTETS
//#const PACKET = 8
alias packet = vec4<u32>;
//#else
//#const PACKET = 4
alias packet = vec4<stored>;
//#end
