// adam, in place: g = scale·gradient + coupled_decay·θ; m += (1 − β1)·(g − m);
// v = β2·v + (1 − β2)·g²; θ = shrink·θ − step_size·m / (√v / bias2_sqrt + ε). Nothing changes where the
// loss is not finite. With HALF the parameters have a copy in f16, written too, and 1 − β1ᵗ and
// 1 − β2ᵗ, which the device alone knows, stand behind the scale. One thread updates four
// parameters, or eight. Reference: `reference` in src/ops/adam.rs.

//#include words

struct Params { count: u32 }
struct Hyper {
  step_size: f32, shrink: f32, coupled_decay: f32, one_minus_beta1: f32,
  beta2: f32, one_minus_beta2: f32, bias2_sqrt: f32, epsilon: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> parameters: array<packed>;
@group(0) @binding(2) var<storage, read> gradients: array<packed>;
@group(0) @binding(3) var<storage, read_write> first_moment: array<packed>;
@group(0) @binding(4) var<storage, read_write> second_moment: array<packed>;
@group(0) @binding(5) var<storage, read> hyper: Hyper;
@group(0) @binding(6) var<storage, read> scale: array<f32>;
@group(0) @binding(7) var<storage, read> loss: array<f32>;
//#if HALF
@group(0) @binding(8) var<storage, read_write> shadow: array<vec4<stored>>;
//#end

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = flat_group(group, groups) * 256u + thread;
  // What all threads share is loaded before any returns: software adapters then load it once.
  let numbers = hyper;
  let loss_scale = scale[0];
  //#if HALF
  let step_size = numbers.step_size / scale[2];
  let bias2_sqrt = numbers.bias2_sqrt * sqrt(scale[3]);
  //#else
  let step_size = numbers.step_size;
  let bias2_sqrt = numbers.bias2_sqrt;
  //#end
  if i >= p.count || !is_finite(loss[0]) { return; }
  let before = unpack(parameters[i]);
  let gradient = unpack(gradients[i]);
  var m = unpack(first_moment[i]);
  var v = unpack(second_moment[i]);
  var updated: quads;
  //#for q in 0..QUADS
  let g_${q} = loss_scale * gradient[${q}] + numbers.coupled_decay * before[${q}];
  m[${q}] += numbers.one_minus_beta1 * (g_${q} - m[${q}]);
  v[${q}] = numbers.beta2 * v[${q}] + numbers.one_minus_beta2 * (g_${q} * g_${q});
  let denominator_${q} = sqrt(v[${q}]) / bias2_sqrt + numbers.epsilon;
  updated[${q}] = numbers.shrink * before[${q}] - step_size * (m[${q}] / denominator_${q});
  //#end
  first_moment[i] = pack(m);
  second_moment[i] = pack(v);
  parameters[i] = pack(updated);
  //#if HALF
  //#for q in 0..QUADS
  shadow[i * ${QUADS}u + ${q}u] = vec4<stored>(updated[${q}]);
  //#end
  //#end
}
