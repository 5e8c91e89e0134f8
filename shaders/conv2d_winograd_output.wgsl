// conv2d by Winograd's F(2×2, 3×3), third step: y = Aᵀ·M·A, two by two pixels of every patch, and what follows a
// convolution. Reference: `reference` in src/ops/conv2d/reference.rs, as of every convolution.
//
// A thread does four channels of PATCHES patches, one after the other.

override PATCHES: u32 = 16u;
override OUTPUT: u32 = 2u;
alias written = stored;

//#include conv2d_winograd_params
@group(0) @binding(1) var<storage, read> m: array<vec4<f32>>;
//#include conv2d_epilogue

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 64u + thread;
  let column = i % p.co4;
  let tiles_w = (p.ow + 1u) / 2u;
  let tiles_h = (p.oh + 1u) / 2u;
  let rows = p.images * tiles_h * tiles_w;
  let first = i / p.co4 * PATCHES;
  if first >= rows { return; }
  let last = min(first + PATCHES, rows);
  //#if BIAS
  let shift = bias[column];
  //#end
  //#if AFFINE
  let affine = affine_of(column);
  //#end
  //#if STATS
  var mean = vec4<f32>();
  var m2 = vec4<f32>();
  //#end

  for (var row = first; row < last; row++) {
    //#for s in 0..4
    //#for r in 0..4
    let m_${r}_${s} = m[(${r * 4 + s}u * rows + row) * p.co4 + column];
    //#end
    let t_0_${s} = m_0_${s} + m_1_${s} + m_2_${s};
    let t_1_${s} = m_1_${s} - m_2_${s} - m_3_${s};
    //#end
    let q = row / tiles_w;
    let image = p.first + q / tiles_h;
    //#for r in 0..2
    let oh_${r} = q % tiles_h * 2u + ${r}u;
    var y_${r}_0 = t_${r}_0 + t_${r}_1 + t_${r}_2;
    var y_${r}_1 = t_${r}_1 - t_${r}_2 - t_${r}_3;
    //#for s in 0..2
    {
      let ow = row % tiles_w * 2u + ${s}u;
      if oh_${r} < p.oh && ow < p.ow {
        let at = ((image * p.oh + oh_${r}) * p.ow + ow) * p.co4 + column;
        //#if BIAS
        y_${r}_${s} += shift;
        //#end
        //#if AFFINE
        y_${r}_${s} = affine.scale * y_${r}_${s} + affine.shift;
        //#end
        //#if RESIDUAL
        y_${r}_${s} += vec4<f32>(residual[at]);
        //#end
        //#if RELU
        y_${r}_${s} = select(y_${r}_${s}, vec4<f32>(), y_${r}_${s} < vec4<f32>());
        //#end
        if p.accumulate != 0u { y_${r}_${s} += vec4<f32>(y[at]); }
        y[at] = vec4<stored>(y_${r}_${s});
      }
    }
    //#end
    //#end
    //#if STATS
    // The patch's four values join those before them (Chan et al.).
    let mean_here = 0.25 * (y_0_0 + y_0_1 + y_1_0 + y_1_1);
    let count = f32(row - first);
    let delta = mean_here - mean;
    //#for o in 0..4
    let d_${o} = y_${o / 2}_${o % 2} - mean_here;
    m2 += d_${o} * d_${o};
    //#end
    m2 += delta * delta * (4.0 * count / (count + 1.0));
    mean += delta / (count + 1.0);
    //#end
  }
  //#if STATS
  let chunk = (p.first * tiles_h * tiles_w + first) / PATCHES;
  partials[chunk * 2u * p.co4 + column] = mean;
  partials[(chunk * 2u + 1u) * p.co4 + column] = m2;
  //#end
}
