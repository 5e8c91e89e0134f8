// The last step of a convolution's pass whose sums workgroups share: adds up the parts, always in the same
// order, and does what follows the sums. Four columns of ROWS rows are a group of SHARES threads'. Reference:
// `reference` and its siblings in src/ops/conv2d/reference.rs, as of every convolution.

override ROWS: u32 = 1u;  // 1 where threads share sums
override OUTPUT: u32 = 2u;
alias written = stored;

struct Params { rows: u32, co4: u32, splits: u32, accumulate: u32, epsilon: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> part: array<vec4<f32>>;  // [split][row][column / 4]
//#include conv2d_epilogue
//#include conv2d_shares

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * QUADS + thread % QUADS;
  let column = i % p.co4;
  let first = i / p.co4 * ROWS;
  //#if SHARES == 1
  if first >= p.rows { return; }
  //#end
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
  for (var next = 0u; next < ROWS; next++) {
    let row = first + next;
    let parts = select(0u, p.splits, row < p.rows);
    let at = row * p.co4 + column;
    var share = vec4<f32>();
    for (var split = thread / QUADS; split < parts; split += SHARES) {
      share += part[split * p.rows * p.co4 + at];
    }
    var sum = sum_of_shares(thread, share);
    if thread >= QUADS || row >= p.rows { break; }
    //#if BIAS
    sum += shift;
    //#end
    //#if AFFINE
    sum = affine.scale * sum + affine.shift;
    //#end
    //#if RESIDUAL
    sum += vec4<f32>(residual[at]);
    //#end
    //#if RELU
    sum = select(sum, vec4<f32>(), sum < vec4<f32>());
    //#end
    if p.accumulate != 0u { sum += vec4<f32>(y[at]); }
    y[at] = vec4<stored>(sum);
    //#if STATS
    // The row joins those before it (Welford).
    let delta = sum - mean;
    mean += delta / f32(next + 1u);
    m2 += delta * (sum - mean);
    //#end
  }
  //#if STATS
  let chunk = first / ROWS;
  partials[chunk * 2u * p.co4 + column] = mean;
  partials[(chunk * 2u + 1u) * p.co4 + column] = m2;
  //#end
}
