// batch_norm backward, second step: adds the chunks' sums up, always in the same order. A workgroup does
// four channels. Writes Σ d_z, Σ d_z·x̂, and the gradients of β and γ, which are the same sums.

//#include batch_norm_sums
override BETA: u32 = 1u;   // whether d_beta is wanted
override GAMMA: u32 = 1u;  // whether d_gamma is wanted

struct Params { c4: u32, chunks: u32, accumulate_beta: u32, accumulate_gamma: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> sums: array<vec4<f32>>;
//#if BETA
@group(0) @binding(3) var<storage, read_write> d_beta: array<vec4<f32>>;
//#end
//#if GAMMA
@group(0) @binding(${3 + BETA}) var<storage, read_write> d_gamma: array<vec4<f32>>;
//#end

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let column = flat_group(group, groups);
  if column >= p.c4 { return; }
  var sum = vec4<f32>();
  var dot = vec4<f32>();
  // Loads of four chunks are under way at a time.
  for (var chunk = thread; chunk < p.chunks; chunk += 4u * THREADS) {
    //#for k in 0..4
    let at_${k} = min(chunk + ${k}u * THREADS, p.chunks - 1u) * 2u * p.c4 + column;
    let sum_${k} = partials[at_${k}];
    let dot_${k} = partials[at_${k} + p.c4];
    //#end
    //#for k in 0..4
    if chunk + ${k}u * THREADS < p.chunks {
      sum += sum_${k};
      dot += dot_${k};
    }
    //#end
  }
  add_up(thread, sum, dot);
  if thread == 0u {
    sum = parts[0];
    dot = dots[0];
    sums[column] = sum;
    sums[p.c4 + column] = dot;
    //#if BETA
    if p.accumulate_beta != 0u { sum += d_beta[column]; }
    d_beta[column] = sum;
    //#end
    //#if GAMMA
    if p.accumulate_gamma != 0u { dot += d_gamma[column]; }
    d_gamma[column] = dot;
    //#end
  }
}
