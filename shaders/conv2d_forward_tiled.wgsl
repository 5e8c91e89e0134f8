// conv2d forward with tiles in workgroup memory: y[m, co] = Σ_(tap, ci) x[pixel m at tap, ci] ·
// weight[tap, ci, co]. Reference: `reference` in src/ops/conv2d/reference.rs.
//
// For GPUs. A workgroup of 16 × 16 threads computes BM output pixels × BN output channels, each
// thread BM/16 rows × BN/16 columns in registers. The sum runs over (tap, ci), or the `chunk` groups of
// four of these that are the workgroup's share, in steps of 16: four groups of four channels, each thread
// staging one such group of BM/64 rows. A thread keeps tap and channel of the group it stages, so the
// inner loop divides nothing. A round loads its step while it multiplies the one before.

override BM: u32 = 64u;  // 64 or 128
override BN: u32 = 64u;  // 64 or 128
// Input channels of a group of four that are not padding: fewer in a network's first layer alone.
override DEPTH: u32 = 4u;
//#include conv2d_forward_memory

var<workgroup> a_tile: array<vec4<f32>, ${BM * 4}>;  // [row][group of 4 channels]
var<workgroup> b_tile: array<vec4<f32>, ${BN * 4}>;  // [channel of 16][column / 4]

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let rows = p.n * p.oh * p.ow;
  let row_tiles = (rows + BM - 1u) / BM;
  let tile = flat_group(group, groups);
  let row_tile = tile % row_tiles;
  let column_tiles = (p.co4 + ${BN / 4 - 1}u) / ${BN / 4}u;
  let column0 = tile / row_tiles % column_tiles * ${BN / 4}u;
  let split = tile / (row_tiles * column_tiles);
  if split >= p.splits { return; }
  let tx = thread % 16u;
  let ty = thread / 16u;

  // What this thread stages: channel group `thread % 4` of the step, rows thread / 4 + 64·j.
  //#for j in 0..BM / 64
  let m_${j} = row_tile * BM + thread / 4u + ${j * 64}u;
  let q_${j} = m_${j} / p.ow;
  let image_${j} = q_${j} / p.oh * p.h;
  let ih_${j} = i32(q_${j} % p.oh * p.stride_h) - i32(p.pad_h);
  let iw_${j} = i32(m_${j} % p.ow * p.stride_w) - i32(p.pad_w);
  //#end
  let first4 = split * p.chunk;
  let first_tap = (first4 + thread % 4u) / p.ci4;
  var c4 = (first4 + thread % 4u) % p.ci4;
  var r = first_tap / p.s;
  var s = first_tap % p.s;

  //#for i in 0..BM / 16
  //#for j in 0..BN / 64
  var acc_${i}_${j} = vec4<f32>();
  //#end
  //#end

  let last4 = min(first4 + p.chunk, p.r * p.s * p.ci4);
  for (var k4 = first4; k4 < last4 + 4u; k4 += 4u) {
    while c4 >= p.ci4 {
      c4 -= p.ci4;
      s++;
      if s == p.s { s = 0u; r++; }
    }
    //#for j in 0..BM / 64
    let h_${j} = u32(ih_${j} + i32(r));
    let w_${j} = u32(iw_${j} + i32(s));
    var a_${j} = vec4<f32>();
    if m_${j} < rows && k4 < last4 && r < p.r && h_${j} < p.h && w_${j} < p.w {
      a_${j} = vec4<f32>(x[((image_${j} + h_${j}) * p.w + w_${j}) * p.ci4 + c4]);
    }
    //#end
    let k = k4 * 4u + ty;
    //#for j in 0..BN / 64
    var b_${j} = vec4<f32>();
    if k < last4 * 4u && column0 + tx + ${j * 16}u < p.co4 {
      b_${j} = vec4<f32>(weight[k * p.co4 + column0 + tx + ${j * 16}u]);
    }
    //#end
    c4 += 4u;
    if k4 > first4 {
      //#for g in 0..4
      {
        //#for i in 0..BM / 16
        let a_${i} = a_tile[(ty + ${i * 16}u) * 4u + ${g}u];
        //#end
        //#for e in 0..DEPTH
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

  let m0 = row_tile * BM + ty;
  //#for j in 0..BN / 64
  {
    let column = column0 + tx + ${j * 16}u;
    let live = column < p.co4;
    //#if BIAS
    let b = bias[min(column, p.co4 - 1u)];
    //#end
    //#if AFFINE
    let affine = affine_of(min(column, p.co4 - 1u));
    //#end
    //#for i in 0..BM / 16
    //#if BIAS
    acc_${i}_${j} += b;
    //#end
    if live && m0 + ${i * 16}u < rows {
      let at = (split * rows + m0 + ${i * 16}u) * p.co4 + column;
      //#if AFFINE
      acc_${i}_${j} = affine.scale * acc_${i}_${j} + affine.shift;
      //#end
      //#if RESIDUAL
      acc_${i}_${j} += vec4<f32>(residual[at]);
      //#end
      //#if RELU
      acc_${i}_${j} = select(acc_${i}_${j}, vec4<f32>(), acc_${i}_${j} < vec4<f32>());
      //#end
      y[at] = vec4<written>(acc_${i}_${j});
    }
    //#end
    //#if STATS
    // Rows past the end hold zeros, and must not count.
    var sum = vec4<f32>();
    //#for i in 0..BM / 16
    sum += acc_${i}_${j};
    //#end
    a_tile[thread] = sum;
    workgroupBarrier();
    var mean = vec4<f32>();
    for (var other = 0u; other < 16u; other++) { mean += a_tile[other * 16u + tx]; }
    mean /= f32(min(BM, rows - row_tile * BM));
    var m2 = vec4<f32>();
    //#for i in 0..BM / 16
    let d_${i} = select(vec4<f32>(), acc_${i}_${j} - mean, m0 + ${i * 16}u < rows);
    m2 += d_${i} * d_${i};
    //#end
    workgroupBarrier();
    a_tile[thread] = m2;
    workgroupBarrier();
    if ty == 0u && live {
      m2 = vec4<f32>();
      for (var other = 0u; other < 16u; other++) { m2 += a_tile[other * 16u + tx]; }
      partials[row_tile * 2u * p.co4 + column] = mean;
      partials[(row_tile * 2u + 1u) * p.co4 + column] = m2;
    }
    workgroupBarrier();
    //#end
  }
  //#end
}
