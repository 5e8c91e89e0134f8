// sgd, in place: g = scale·gradient + weight_decay·θ; v = momentum·v + g (v = g at first);
// θ −= learning_rate·v (or of g + momentum·v with Nesterov). Nothing changes where the loss is not finite.
// With HALF the parameters have a copy in f16, written too. One thread updates four parameters, or eight.
// Reference: `reference` in src/ops/sgd.rs.

//#include words

struct Params { count: u32 }
struct Hyper {
  learning_rate: f32, momentum: f32, weight_decay: f32, first: f32,
  nesterov: f32, unused_0: f32, unused_1: f32, unused_2: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> parameters: array<packed>;
@group(0) @binding(2) var<storage, read> gradients: array<packed>;
@group(0) @binding(3) var<storage, read_write> velocity: array<packed>;
@group(0) @binding(4) var<storage, read> hyper: Hyper;
@group(0) @binding(5) var<storage, read> scale: array<f32>;
@group(0) @binding(6) var<storage, read> loss: array<f32>;
//#if HALF
@group(0) @binding(7) var<storage, read_write> shadow: array<vec4<stored>>;
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
  if i >= p.count || !is_finite(loss[0]) { return; }
  let before = unpack(parameters[i]);
  let gradient = unpack(gradients[i]);
  var v = unpack(velocity[i]);
  var updated: quads;
  //#for q in 0..QUADS
  let g_${q} = loss_scale * gradient[${q}] + numbers.weight_decay * before[${q}];
  // At first the velocity's memory is undefined: it must not reach the sum, not even times zero.
  v[${q}] = select(numbers.momentum * v[${q}] + g_${q}, g_${q}, numbers.first != 0.0);
  let step_${q} = select(v[${q}], g_${q} + numbers.momentum * v[${q}], numbers.nesterov != 0.0);
  updated[${q}] = before[${q}] - numbers.learning_rate * step_${q};
  //#end
  velocity[i] = pack(v);
  parameters[i] = pack(updated);
  //#if HALF
  //#for q in 0..QUADS
  shadow[i * ${QUADS}u + ${q}u] = vec4<stored>(updated[${q}]);
  //#end
  //#end
}
