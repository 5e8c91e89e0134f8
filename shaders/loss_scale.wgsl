// loss_scale: what is to become of a step whose gradients are those of scale·loss, given the sums of their
// squares. One workgroup of 256 threads. Reference: `reference` in src/ops/loss_scale.rs.

struct Params {
  partials: u32, clip: u32, max_norm: f32, growth: f32,
  backoff: f32, interval: f32, one_minus_beta1: f32, one_minus_beta2: f32,
  infinity: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
//#include sum_of_partials
@group(0) @binding(2) var<storage, read> loss: array<f32>;
// The scale, steps done since it last changed, and 1 − βᵗ of both moments after t steps done; the
// scale that the gradients at hand have, and the steps skipped.
@group(0) @binding(3) var<storage, read_write> state: array<vec4<f32>, 2>;
// What to multiply gradients by, the norm, and 1 − βᵗ.
@group(0) @binding(4) var<storage, read_write> step: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> verdict: array<vec4<f32>>;

// 2^126, above which dividing by the scale is not exact on every adapter.
const LARGEST: f32 = 0x1p126f;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
  let squares = sum_of_partials(thread);
  if thread != 0u { return; }
  var now = state[0];
  let scale = now.x;
  if is_finite(squares) && is_finite(loss[0]) {
    // 1 − βᵗ⁺¹ = c + (1 − β)·(1 − c), without cancellation.
    now.z += p.one_minus_beta1 * (1.0 - now.z);
    now.w += p.one_minus_beta2 * (1.0 - now.w);
    let norm = sqrt(squares) / scale;
    let clipped = min(1.0, p.max_norm / (norm + 1e-6));
    step[0] = vec4<f32>(select(1.0, clipped, p.clip != 0u) / scale, norm, now.z, now.w);
    verdict[0] = vec4<f32>(loss[0], 0.0, 0.0, 0.0);
    now.y += 1.0;
    if now.y >= p.interval {
      now.y = 0.0;
      let grown = scale * p.growth;
      if grown <= LARGEST { now.x = grown; }
    }
    state[1] = vec4<f32>(scale, state[1].y, 0.0, 0.0);
  } else {
    step[0] = vec4<f32>(0.0, p.infinity, now.z, now.w);
    verdict[0] = vec4<f32>(p.infinity, 0.0, 0.0, 0.0);
    now.x = scale * p.backoff;
    now.y = 0.0;
    state[1] = vec4<f32>(scale, state[1].y + 1.0, 0.0, 0.0);
  }
  state[0] = now;
}
