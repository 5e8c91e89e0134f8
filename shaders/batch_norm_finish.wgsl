// batch_norm statistics, second step: merges the chunks' means and squared deviations (Chan et al.),
// updates the running statistics, and writes what the other kernels use: scale = γ/σ,
// shift = β − μ·scale, μ, and 1/σ. A workgroup merges four channels; where there are few pixels, it does
// on all of these what batch_norm_apply.wgsl does, and with PARTS first what conv2d_sum.wgsl does.
// Reference: `reference` in src/ops/batch_norm/reference.rs.

override APPLY: u32 = 0u;
override PARTS: u32 = 0u;  // with APPLY
override THREADS: u32 = 64u;

// Of `chunk` pixels are the `count` statistics in `partials`, counted as if each `width` pixels, a row of an image,
// were followed by `gap` more; or `chunk` parts, [part][row][column / 4], make x.
struct Params { rows: u32, c4: u32, chunk: u32, momentum: f32, epsilon: f32, width: u32, gap: u32, count: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> gamma: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> beta: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> running: array<vec4<f32>>;  // mean, then variance
@group(0) @binding(5) var<storage, read_write> coefficients: array<vec4<f32>>;
//#if APPLY
//#include batch_norm_normalise
//#if PARTS
@group(0) @binding(6) var<storage, read_write> x: array<vec4<stored>>;
//#else
@group(0) @binding(6) var<storage, read> x: array<vec4<stored>>;
//#end
@group(0) @binding(7) var<storage, read_write> y: array<vec4<stored>>;
//#if RESIDUAL
@group(0) @binding(8) var<storage, read> residual: array<vec4<stored>>;
//#end
//#end

// How many pixels there are before a chunk.
fn pixels_before(chunk: u32) -> u32 {
  let place = chunk * p.chunk;
  let pitch = p.width + p.gap;
  return min(place / pitch * p.width + min(place % pitch, p.width), p.rows);
}

var<workgroup> counts: array<f32, THREADS>;
var<workgroup> means: array<vec4<f32>, THREADS>;
var<workgroup> m2s: array<vec4<f32>, THREADS>;

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let column = flat_group(group, groups);
  if column >= p.c4 { return; }
  var count = 0.0;
  var mean = vec4<f32>();
  var m2 = vec4<f32>();
  //#if PARTS
  for (var row = thread; row < p.rows; row += THREADS) {
    let at = row * p.c4 + column;
    // Loads of four parts are under way at a time.
    var sum = vec4<f32>();
    for (var part = 0u; part < p.chunk; part += 4u) {
      //#for k in 0..4
      let part_${k} = partials[min(part + ${k}u, p.chunk - 1u) * p.rows * p.c4 + at];
      //#end
      //#for k in 0..4
      if part + ${k}u < p.chunk { sum += part_${k}; }
      //#end
    }
    x[at] = vec4<stored>(sum);
    // The row joins those before it (Welford).
    count += 1.0;
    let delta = sum - mean;
    mean += delta / count;
    m2 += delta * (sum - mean);
  }
  //#else
  // Loads of four chunks are under way at a time.
  for (var chunk = thread; chunk < p.count; chunk += 4u * THREADS) {
    //#for k in 0..4
    let at_${k} = min(chunk + ${k}u * THREADS, p.count - 1u) * 2u * p.c4 + column;
    let mean_${k} = partials[at_${k}];
    let m2_${k} = partials[at_${k} + p.c4];
    //#end
    //#for k in 0..4
    if chunk + ${k}u * THREADS < p.count {
      let nth = chunk + ${k}u * THREADS;
      let n = f32(pixels_before(nth + 1u) - pixels_before(nth));
      let delta = mean_${k} - mean;
      let share = n / max(count + n, 1.0);
      mean += delta * share;
      m2 += m2_${k} + delta * delta * (count * share);
      count += n;
    }
    //#end
  }
  //#end
  counts[thread] = count;
  means[thread] = mean;
  m2s[thread] = m2;
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if thread < half {
      let n = counts[thread + half];
      let delta = means[thread + half] - means[thread];
      let share = n / max(counts[thread] + n, 1.0);
      means[thread] += delta * share;
      m2s[thread] += m2s[thread + half] + delta * delta * (counts[thread] * share);
      counts[thread] += n;
    }
  }
  workgroupBarrier();
  mean = means[0];
  m2 = m2s[0];
  let rows = f32(p.rows);
  let inverse = 1.0 / sqrt(m2 / rows + p.epsilon);
  let scale = gamma[column] * inverse;
  let shift = beta[column] - mean * scale;
  if thread == 0u {
    coefficients[column] = scale;
    coefficients[p.c4 + column] = shift;
    coefficients[2u * p.c4 + column] = mean;
    coefficients[3u * p.c4 + column] = inverse;
    running[column] += p.momentum * (mean - running[column]);
    running[p.c4 + column] += p.momentum * (m2 / (rows - 1.0) - running[p.c4 + column]);
  }
  //#if APPLY
  for (var row = thread; row < p.rows; row += THREADS) {
    let at = row * p.c4 + column;
    y[at] = normalised(at, scale, shift);
  }
  //#end
}
