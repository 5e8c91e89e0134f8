// max_pool2d backward: d_x = Σ d_y of the windows whose maximum this pixel was, in row-major order. One
// thread does four channels of a block of STRIDE_H × STRIDE_W input pixels that begins where a window does:
// the same few windows reach all of it, and which tap a pixel is of each is known beforehand. Reference:
// `reference_gradient` in src/ops/max_pool2d.rs.

//#include max_pool2d_places
// Windows along an axis that begin before a block and reach it.
//#const BEFORE_H = (KERNEL_H - 1) / STRIDE_H
//#const BEFORE_W = (KERNEL_W - 1) / STRIDE_W

@group(0) @binding(1) var<storage, read> taps: array<u32>;
@group(0) @binding(2) var<storage, read> d_y: array<vec4<stored>>;
@group(0) @binding(3) var<storage, read_write> d_x: array<vec4<stored>>;

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let block = place_of(group, groups, thread, (p.padding_h + p.h + STRIDE_H - 1u) / STRIDE_H);
  if block.image >= p.n || block.column * STRIDE_W >= p.padding_w + p.w { return; }

  //#for j in 0..BEFORE_H + 1
  //#for k in 0..BEFORE_W + 1
  let oh_${j}_${k} = block.row - ${BEFORE_H - j}u;
  let ow_${j}_${k} = block.column - ${BEFORE_W - k}u;
  let exists_${j}_${k} = (oh_${j}_${k} < p.oh) & (ow_${j}_${k} < p.ow);
  let at_${j}_${k} = select(0u,
    ((block.image * p.oh + oh_${j}_${k}) * p.ow + ow_${j}_${k}) * p.c4 + block.c, exists_${j}_${k});
  let winners_${j}_${k} = unpack4xU8(taps[at_${j}_${k}]);
  let d_y_${j}_${k} = select(vec4<f32>(), vec4<f32>(d_y[at_${j}_${k}]), exists_${j}_${k});
  //#end
  //#end

  // The first pixel's, from the start of the image; in the padding it wraps to more than any.
  let top = block.row * STRIDE_H - p.padding_h;
  let left = block.column * STRIDE_W - p.padding_w;
  //#for r in 0..STRIDE_H
  //#for s in 0..STRIDE_W
  if (top + ${r}u < p.h) & (left + ${s}u < p.w) {
    var d = vec4<f32>();
    //#for j in 0..BEFORE_H + 1
    //#for k in 0..BEFORE_W + 1
    //#if (r + (BEFORE_H - j) * STRIDE_H < KERNEL_H) * (s + (BEFORE_W - k) * STRIDE_W < KERNEL_W)
    d += select(vec4<f32>(), d_y_${j}_${k}, winners_${j}_${k} == vec4<u32>(
      ${(r + (BEFORE_H - j) * STRIDE_H) * KERNEL_W + s + (BEFORE_W - k) * STRIDE_W}u));
    //#end
    //#end
    //#end
    let at = ((block.image * p.h + top + ${r}u) * p.w + left + ${s}u) * p.c4 + block.c;
    if p.accumulate != 0u { d += vec4<f32>(d_x[at]); }
    d_x[at] = vec4<stored>(d);
  }
  //#end
  //#end
}
