// max_pool2d forward: y = max of the window, and which tap it was. One thread does four channels of one
// output pixel. The first maximum in row-major order wins, and a NaN beats every number. A tap outside the
// image stands for the nearest one inside, which the window has too. Reference: `reference` in
// src/ops/max_pool2d.rs.

//#include max_pool2d_places
override KEEP_TAPS: u32 = 1u;  // 0 where nothing will be differentiated
// Whether the window is taken of max(scale·x + shift, 0), a batch norm and a ReLU.
override NORM: u32 = 0u;
//#const TAPS = KERNEL_H * KERNEL_W

@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<stored>>;
//#if KEEP_TAPS == 1
@group(0) @binding(3) var<storage, read_write> taps: array<u32>;
//#end
//#if NORM
@group(0) @binding(${3 + KEEP_TAPS}) var<storage, read> coefficients: array<vec4<f32>>;
//#end

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let place = place_of(group, groups, thread, p.oh);
  if place.image >= p.n || place.column >= p.ow { return; }

  // Rows and columns count from the first row and column of the padding.
  let top = place.row * STRIDE_H;
  let left = place.column * STRIDE_W;
  //#if NORM
  let scale = coefficients[place.c];
  let shift = coefficients[p.c4 + place.c];
  //#end
  //#for t in 0..TAPS
  let row_${t} = clamp(top + ${t / KERNEL_W}u, p.padding_h, p.padding_h + p.h - 1u);
  let column_${t} = clamp(left + ${t % KERNEL_W}u, p.padding_w, p.padding_w + p.w - 1u);
  let tap_${t} = vec4<u32>((row_${t} - top) * KERNEL_W + column_${t} - left);
  let line_${t} = (place.image * p.h + row_${t} - p.padding_h) * p.w;
  let at_${t} = (line_${t} + column_${t} - p.padding_w) * p.c4 + place.c;
  //#if NORM
  let value_${t} = scale * vec4<f32>(x[at_${t}]) + shift;
  //#else
  let value_${t} = vec4<f32>(x[at_${t}]);
  //#end
  //#end

  var best = value_0;
  var best_tap = tap_0;
  var sum = value_0;
  //#for t in 1..TAPS
  let wins_${t} = value_${t} > best;
  best = select(best, value_${t}, wins_${t});
  best_tap = select(best_tap, tap_${t}, wins_${t});
  sum += value_${t};
  //#end
  // Adding is cheaper than asking each value: without a NaN, only infinities of both signs give one.
  if any(is_nan(sum)) {
    //#for t in 0..TAPS
    let is_nan_${t} = is_nan(value_${t});
    best = select(best, value_${t}, is_nan_${t});
    best_tap = select(best_tap, tap_${t}, is_nan_${t});
    //#end
  }
  //#if NORM
  // After the maximum: where that is not positive, nothing goes back through the ReLU, whichever tap won.
  best = select(best, vec4<f32>(), best < vec4<f32>());
  //#end
  let at = ((place.image * p.oh + place.row) * p.ow + place.column) * p.c4 + place.c;
  y[at] = vec4<stored>(best);
  //#if KEEP_TAPS == 1
  taps[at] = pack4xU8(best_tap);
  //#end
}
