// conv2d by Winograd's F(2×2, 3×3), first step: V = Bᵀ·d·B of every 4×4 patch d of the input, two pixels
// apart. Reference: `reference` in src/ops/conv2d/reference.rs, as of every convolution.
//
// A thread transforms four channels of TILES neighbouring patches of a row, which share two columns.
// V is [position in the patch][patch][channel / 4].

override TILES: u32 = 2u;

//#include conv2d_winograd_params
@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read_write> v: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 64u + thread;
  let tiles_w = (p.ow + 1u) / 2u;
  let tiles_h = (p.oh + 1u) / 2u;
  let strips = (tiles_w + TILES - 1u) / TILES;
  let c4 = i % p.ci4;
  let strip = i / p.ci4;
  let row = strip / strips;
  if row >= p.images * tiles_h { return; }
  let first = strip % strips * TILES;
  let image = p.first + row / tiles_h;
  let left = i32(first * 2u) - i32(p.pad_w);
  let top = i32(row % tiles_h * 2u) - i32(p.pad_h);

  // Coordinates outside the image, negative ones included, wrap to more than its size.
  //#for r in 0..4
  let h_${r} = u32(top + ${r});
  let line_${r} = (image * p.h + h_${r}) * p.w;
  let end_${r} = select(0u, p.w, h_${r} < p.h);
  //#end
  //#for s in 0..2 * TILES + 2
  //#for r in 0..4
  let w_${r}_${s} = u32(left + ${s});
  let inside_${r}_${s} = w_${r}_${s} < end_${r};
  let d_${r}_${s} = select(vec4<f32>(),
    vec4<f32>(x[select(0u, line_${r} + w_${r}_${s}, inside_${r}_${s}) * p.ci4 + c4]),
    inside_${r}_${s});
  //#end
  let b_0_${s} = d_0_${s} - d_2_${s};
  let b_1_${s} = d_1_${s} + d_2_${s};
  let b_2_${s} = d_2_${s} - d_1_${s};
  let b_3_${s} = d_1_${s} - d_3_${s};
  //#end

  let plane = p.images * tiles_h * tiles_w * p.ci4;
  //#for t in 0..TILES
  if first + ${t}u < tiles_w {
    let at = (row * tiles_w + first + ${t}u) * p.ci4 + c4;
    //#for r in 0..4
    v[at + ${r * 4}u * plane] = b_${r}_${2 * t} - b_${r}_${2 * t + 2};
    v[at + ${r * 4 + 1}u * plane] = b_${r}_${2 * t + 1} + b_${r}_${2 * t + 2};
    v[at + ${r * 4 + 2}u * plane] = b_${r}_${2 * t + 2} - b_${r}_${2 * t + 1};
    v[at + ${r * 4 + 3}u * plane] = b_${r}_${2 * t + 1} - b_${r}_${2 * t + 3};
    //#end
  }
  //#end
}
