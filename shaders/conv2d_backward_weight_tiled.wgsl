// conv2d backward by the weight with tiles in workgroup memory: d_w[(tap, ci), co] = Σ_pixels x[pixel at
// tap, ci] · d_y[pixel, co]. Reference: `reference_weight` in src/ops/conv2d/reference.rs.
//
// For GPUs. A workgroup of 16 × 16 threads computes BM rows (tap, ci) × BN output channels over the
// `chunk` output image rows of its split, 16 pixels a step; conv2d_sum.wgsl adds
// the splits up. A thread keeps image, row and column of the pixel it stages, and loads those of a step
// while it multiplies the step before.

override BM: u32 = 64u;  // 64 or 128
override BN: u32 = 64u;  // 64 or 128
// Input channels of a group of four that are not padding: fewer in a network's first layer alone.
override DEPTH: u32 = 4u;

//#include conv2d_params
@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> d_y: array<vec4<stored>>;
@group(0) @binding(3) var<storage, read_write> d_w: array<vec4<f32>>;

var<workgroup> a_tile: array<vec4<f32>, ${BM * 4}>;  // [pixel][row / 4]
var<workgroup> b_tile: array<vec4<f32>, ${BN * 4}>;  // [pixel][column / 4]

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let row_quads = p.r * p.s * p.ci4;
  let row_tiles = (row_quads * 4u + BM - 1u) / BM;
  let column_tiles = (p.co4 * 4u + BN - 1u) / BN;
  let tile = flat_group(group, groups);
  let split = tile / (row_tiles * column_tiles);
  if split >= p.splits { return; }
  let quad0 = tile % row_tiles * ${BM / 4}u;
  let column0 = tile / row_tiles % column_tiles * ${BN / 4}u;
  let tx = thread % 16u;
  let ty = thread / 16u;

  //#for j in 0..BM / 64
  let quad_${j} = quad0 + tx + ${j * 16}u;
  let tap_${j} = quad_${j} / p.ci4;
  let c4_${j} = quad_${j} % p.ci4;
  let dh_${j} = i32(tap_${j} / p.s) - i32(p.pad_h);
  let dw_${j} = i32(tap_${j} % p.s) - i32(p.pad_w);
  //#end

  //#for i in 0..BM / 16
  //#for j in 0..BN / 64
  var acc_${i}_${j} = vec4<f32>();
  //#end
  //#end

  let first = split * p.chunk * p.ow;
  let last = min((split + 1u) * p.chunk, p.n * p.oh) * p.ow;
  var pixel = first + ty;
  var ow = pixel % p.ow;
  var oh = pixel / p.ow % p.oh;
  var image = pixel / p.ow / p.oh;
  for (var k0 = first; k0 < last + 16u; k0 += 16u) {
    //#for j in 0..BM / 64
    let h_${j} = u32(i32(oh * p.stride_h) + dh_${j});
    let w_${j} = u32(i32(ow * p.stride_w) + dw_${j});
    var a_${j} = vec4<f32>();
    if pixel < last && quad_${j} < row_quads && h_${j} < p.h && w_${j} < p.w {
      a_${j} = vec4<f32>(x[((image * p.h + h_${j}) * p.w + w_${j}) * p.ci4 + c4_${j}]);
    }
    //#end
    //#for j in 0..BN / 64
    var b_${j} = vec4<f32>();
    if pixel < last && column0 + tx + ${j * 16}u < p.co4 {
      b_${j} = vec4<f32>(d_y[pixel * p.co4 + column0 + tx + ${j * 16}u]);
    }
    //#end
    pixel += 16u;
    ow += 16u;
    while ow >= p.ow {
      ow -= p.ow;
      oh++;
      if oh == p.oh { oh = 0u; image++; }
    }
    if k0 > first {
      //#for k in 0..16
      {
        //#for j in 0..BN / 64
        let b_${j} = b_tile[${k * (BN / 4) + j * 16}u + tx];
        //#end
        //#for i in 0..BM / 64
        let a_${i} = a_tile[${k * (BM / 4) + i * 16}u + ty];
        //#for e in 0..DEPTH
        //#for j in 0..BN / 64
        acc_${i * 4 + e}_${j} = fma(vec4(a_${i}[${e}]), b_${j}, acc_${i * 4 + e}_${j});
        //#end
        //#end
        //#end
      }
      //#end
    }
    workgroupBarrier();
    //#for j in 0..BM / 64
    a_tile[ty * ${BM / 4}u + tx + ${j * 16}u] = a_${j};
    //#end
    //#for j in 0..BN / 64
    b_tile[ty * ${BN / 4}u + tx + ${j * 16}u] = b_${j};
    //#end
    workgroupBarrier();
  }

  //#for i in 0..BM / 64
  {
    let quad = quad0 + ty + ${i * 16}u;
    //#for j in 0..BN / 64
    let column_${j} = column0 + tx + ${j * 16}u;
    if quad < row_quads && column_${j} < p.co4 {
      let at = (split * row_quads + quad) * 4u * p.co4 + column_${j};
      //#for e in 0..4
      d_w[at + ${e}u * p.co4] = acc_${i * 4 + e}_${j};
      //#end
    }
    //#end
  }
  //#end
}
