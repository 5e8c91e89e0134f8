// What the steps of Winograd's algorithm are told: `Params` in src/ops/conv2d/winograd.rs.

struct Params {
  first: u32, images: u32, h: u32, w: u32,
  oh: u32, ow: u32, pad_h: u32, pad_w: u32,
  ci4: u32, co4: u32, accumulate: u32, epsilon: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
