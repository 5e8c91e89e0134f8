// max_pool2d backward: d_x = Σ d_y of the windows whose maximum this pixel was. One thread does four
// channels of one input pixel and visits the windows that cover it, in row-major order. Reference:
// `reference_gradient` in src/ops/max_pool2d.rs.

override KERNEL_H: u32 = 3u;
override KERNEL_W: u32 = 3u;
override STRIDE_H: u32 = 2u;
override STRIDE_W: u32 = 2u;

struct Params {
  n: u32, h: u32, w: u32, c4: u32,
  oh: u32, ow: u32, kernel_h: u32, kernel_w: u32,
  stride_h: u32, stride_w: u32, padding_h: u32, padding_w: u32,
  lowest: f32, accumulate: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> taps: array<u32>;
@group(0) @binding(2) var<storage, read> d_y: array<vec4<stored>>;
@group(0) @binding(3) var<storage, read_write> d_x: array<vec4<stored>>;

// The first of the windows that cover `position`, counted from the start of the padding.
fn first_window(position: u32, kernel: u32, stride: u32) -> u32 {
  return select((position - kernel) / stride + 1u, 0u, position < kernel);
}

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 256u + thread;
  if i >= p.n * p.h * p.w * p.c4 { return; }
  let c = i % p.c4;
  let pixel = i / p.c4;
  let image = pixel / p.w / p.h;
  let row = pixel / p.w % p.h + p.padding_h;
  let column = pixel % p.w + p.padding_w;
  let oh_end = min(row / STRIDE_H + 1u, p.oh);
  let ow_first = first_window(column, KERNEL_W, STRIDE_W);
  let ow_end = min(column / STRIDE_W + 1u, p.ow);

  var d = vec4<f32>();
  for (var oh = first_window(row, KERNEL_H, STRIDE_H); oh < oh_end; oh++) {
    for (var ow = ow_first; ow < ow_end; ow++) {
      let at = ((image * p.oh + oh) * p.ow + ow) * p.c4 + c;
      let tap = (row - oh * STRIDE_H) * KERNEL_W + column - ow * STRIDE_W;
      let winners = (vec4<u32>(taps[at]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
      d += select(vec4<f32>(), vec4<f32>(d_y[at]), winners == vec4<u32>(tap));
    }
  }
  if p.accumulate != 0u { d += vec4<f32>(d_x[i]); }
  d_x[i] = vec4<stored>(d);
}
