// conv2d by Winograd's F(2×2, 3×3), second step, with tiles in workgroup memory: M = Σ_ci V·U at each of the 16
// positions of a patch. Reference: `reference` in src/ops/conv2d/reference.rs, as of every convolution.
//
// For GPUs. 16 matrix products of patches × output channels, each as in conv2d_forward_tiled.wgsl with
// rows = patches. M is [position in the patch][patch][channel / 4].

override BM: u32 = 64u;  // 64 or 128
override BN: u32 = 64u;  // 64 or 128

//#include conv2d_winograd_params
@group(0) @binding(1) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> u: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> m: array<vec4<f32>>;

var<workgroup> a_tile: array<vec4<f32>, ${BM * 4}>;  // [row][group of 4 channels]
var<workgroup> b_tile: array<vec4<f32>, ${BN * 4}>;  // [channel of 16][column / 4]

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let rows = p.images * ((p.oh + 1u) / 2u) * ((p.ow + 1u) / 2u);
  let row_tiles = (rows + BM - 1u) / BM;
  let column_tiles = (p.co4 + ${BN / 4 - 1}u) / ${BN / 4}u;
  let tile = flat_group(group, groups);
  let position = tile / (row_tiles * column_tiles);
  if position >= 16u { return; }
  let row0 = tile % row_tiles * BM;
  let column0 = tile / row_tiles % column_tiles * ${BN / 4}u;
  let tx = thread % 16u;
  let ty = thread / 16u;

  //#for i in 0..BM / 16
  //#for j in 0..BN / 64
  var acc_${i}_${j} = vec4<f32>();
  //#end
  //#end

  let depth = position * p.ci4 * 4u;
  // A round loads its step while it multiplies the one before.
  for (var c4 = 0u; c4 < p.ci4 + 4u; c4 += 4u) {
    //#for j in 0..BM / 64
    let row_${j} = row0 + thread / 4u + ${j * 64}u;
    var a_${j} = vec4<f32>();
    if row_${j} < rows && c4 + thread % 4u < p.ci4 {
      a_${j} = v[(position * rows + row_${j}) * p.ci4 + c4 + thread % 4u];
    }
    //#end
    //#for j in 0..BN / 64
    var b_${j} = vec4<f32>();
    if c4 * 4u + ty < p.ci4 * 4u && column0 + tx + ${j * 16}u < p.co4 {
      b_${j} = u[(depth + c4 * 4u + ty) * p.co4 + column0 + tx + ${j * 16}u];
    }
    //#end
    if c4 > 0u {
      //#for g in 0..4
      {
        //#for i in 0..BM / 16
        let a_${i} = a_tile[(ty + ${i * 16}u) * 4u + ${g}u];
        //#end
        //#for e in 0..4
        //#for j in 0..BN / 64
        let b_${e}_${j} = b_tile[${(g * 4 + e) * (BN / 4) + j * 16}u + tx];
        //#for i in 0..BM / 16
        acc_${i}_${j} = fma(vec4(a_${i}[${e}]), b_${e}_${j}, acc_${i}_${j});
        //#end
        //#end
        //#end
      }
      //#end
    }
    workgroupBarrier();
    //#for j in 0..BM / 64
    a_tile[thread + ${j * 256}u] = a_${j};
    //#end
    //#for j in 0..BN / 64
    b_tile[ty * ${BN / 4}u + tx + ${j * 16}u] = b_${j};
    //#end
    workgroupBarrier();
  }

  //#for j in 0..BN / 64
  if column0 + tx + ${j * 16}u < p.co4 {
    //#for i in 0..BM / 16
    if row0 + ty + ${i * 16}u < rows {
      m[(position * rows + row0 + ty + ${i * 16}u) * p.co4 + column0 + tx + ${j * 16}u] = acc_${i}_${j};
    }
    //#end
  }
  //#end
}
