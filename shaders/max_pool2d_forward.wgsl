// max_pool2d forward: y = max of the window, and which tap it was. One thread does four channels of
// one output pixel, over the taps that lie inside the image; the first maximum in row-major order
// wins, and a NaN beats every number. Reference: `reference` in src/ops/max_pool2d.rs.

override KEEP_TAPS: u32 = 1u;  // 0 where nothing will be differentiated
// Whether the window is taken of max(scale·x + shift, 0), a batch norm and a ReLU.
override NORM: u32 = 0u;

struct Params {
  n: u32, h: u32, w: u32, c4: u32,
  oh: u32, ow: u32, kernel_h: u32, kernel_w: u32,
  stride_h: u32, stride_w: u32, padding_h: u32, padding_w: u32,
  lowest: f32, accumulate: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<stored>>;
//#if KEEP_TAPS == 1
@group(0) @binding(3) var<storage, read_write> taps: array<u32>;
//#end
//#if NORM
@group(0) @binding(${3 + KEEP_TAPS}) var<storage, read> coefficients: array<vec4<f32>>;
//#end

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 256u + thread;
  if i >= p.n * p.oh * p.ow * p.c4 { return; }
  let c = i % p.c4;
  let pixel = i / p.c4;
  let image = pixel / p.ow / p.oh;
  // Rows and columns count from the first row and column of the padding.
  let top = pixel / p.ow % p.oh * p.stride_h;
  let left = pixel % p.ow * p.stride_w;
  let top_inside = max(top, p.padding_h);
  let left_inside = max(left, p.padding_w);
  let bottom = min(top + p.kernel_h, p.padding_h + p.h);
  let right = min(left + p.kernel_w, p.padding_w + p.w);

  //#if NORM
  let scale = coefficients[c];
  let shift = coefficients[p.c4 + c];
  //#end
  var best = vec4<f32>(p.lowest);
  var best_tap = vec4<u32>((top_inside - top) * p.kernel_w + left_inside - left);
  for (var row = top_inside; row < bottom; row++) {
    for (var column = left_inside; column < right; column++) {
      let h = row - p.padding_h;
      let w = column - p.padding_w;
      var value = vec4<f32>(x[((image * p.h + h) * p.w + w) * p.c4 + c]);
      //#if NORM
      value = scale * value + shift;
      value = select(value, vec4<f32>(), value < vec4<f32>());
      //#end
      let wins = (value > best) | is_nan(value);
      best = select(best, value, wins);
      best_tap = select(best_tap, vec4<u32>((row - top) * p.kernel_w + column - left), wins);
    }
  }
  y[i] = vec4<stored>(best);
  //#if KEEP_TAPS == 1
  taps[i] = best_tap.x | (best_tap.y << 8u) | (best_tap.z << 16u) | (best_tap.w << 24u);
  //#end
}
