// conv2d by Winograd's F(2×2, 3×3), first step: U = G·g·Gᵀ of every 3×3 window g of the weight. Reference:
// `reference` in src/ops/conv2d/reference.rs, as of every convolution.
//
// A thread transforms 4 × 4 channels. U is [position in the patch][channel in][channel out / 4]. With
// BACKWARD, for the gradient by the input, which is the convolution of d_y by the weight turned by
// half a circle, its input and output channels exchanged.

override BACKWARD: u32 = 0u;

//#include conv2d_winograd_params
@group(0) @binding(1) var<storage, read> weight: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read_write> u: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 64u + thread;
  let out4 = i % p.co4;
  let in4 = i / p.co4;
  if in4 >= p.ci4 { return; }
  //#for e in 0..4
  {
    //#for tap in 0..9
    //#if BACKWARD
    let column_${tap} = ${8 - tap}u * p.co4 * 4u + out4 * 4u;
    let g_${tap} = vec4<f32>(vec4(
      weight[column_${tap} * p.ci4 + in4][${e}], weight[(column_${tap} + 1u) * p.ci4 + in4][${e}],
      weight[(column_${tap} + 2u) * p.ci4 + in4][${e}], weight[(column_${tap} + 3u) * p.ci4 + in4][${e}]));
    //#else
    let g_${tap} = vec4<f32>(weight[(${tap}u * p.ci4 * 4u + in4 * 4u + ${e}u) * p.co4 + out4]);
    //#end
    //#end
    //#for s in 0..3
    let t_0_${s} = g_${s};
    let t_1_${s} = 0.5 * (g_${s} + g_${s + 3} + g_${s + 6});
    let t_2_${s} = 0.5 * (g_${s} - g_${s + 3} + g_${s + 6});
    let t_3_${s} = g_${s + 6};
    //#end
    let plane = p.ci4 * 4u * p.co4;
    let at = (in4 * 4u + ${e}u) * p.co4 + out4;
    //#for r in 0..4
    u[at + ${r * 4}u * plane] = t_${r}_0;
    u[at + ${r * 4 + 1}u * plane] = 0.5 * (t_${r}_0 + t_${r}_1 + t_${r}_2);
    u[at + ${r * 4 + 2}u * plane] = 0.5 * (t_${r}_0 - t_${r}_1 + t_${r}_2);
    u[at + ${r * 4 + 3}u * plane] = t_${r}_2;
    //#end
  }
  //#end
}
