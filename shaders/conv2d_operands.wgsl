// Both operands of a product as kernels in registers alone read them: arrays, or, with TEXELS, the copies
// that `Gpu::texels` makes of them. Forward they are x and the weight, by the input d_y and the weight, by
// the weight x and d_y, with Winograd's algorithm V and U.

override TEXELS: u32 = 0u;

//#if TEXELS
//#if HALF
alias operand = texture_storage_2d<rgba16float, read>;
//#else
alias operand = texture_storage_2d<rgba32float, read>;
//#end
@group(0) @binding(1) var left: operand;
@group(0) @binding(2) var right: operand;

fn left_at(i: u32) -> vec4<f32> {
  return textureLoad(left, vec2(i % 1024u, i / 1024u));
}

fn right_at(i: u32) -> vec4<f32> {
  return textureLoad(right, vec2(i % 1024u, i / 1024u));
}
//#else
@group(0) @binding(1) var<storage, read> left: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> right: array<vec4<stored>>;

fn left_at(i: u32) -> vec4<f32> {
  return vec4<f32>(left[i]);
}

fn right_at(i: u32) -> vec4<f32> {
  return vec4<f32>(right[i]);
}
//#end
