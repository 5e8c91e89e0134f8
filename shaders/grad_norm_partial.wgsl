// grad_norm, first half: partials[first + group] = Σ g² over a workgroup's chunk of an arena. Its threads stride
// over that, four numbers or eight a time, then add up pairwise. Reference: `reference` in src/ops/grad_norm.rs.

override THREADS: u32 = 256u;

//#include words

struct Params { count: u32, chunk: u32, first: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gradients: array<packed>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;

var<workgroup> shares: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let begin = group.x * p.chunk;
  let end = min(begin + p.chunk, p.count);
  //#for q in 0..QUADS
  var squares_${q} = vec4<f32>();
  //#end
  for (var i = begin + thread; i < end; i += THREADS) {
    let g = unpack(gradients[i]);
    //#for q in 0..QUADS
    squares_${q} += g[${q}] * g[${q}];
    //#end
  }
  var squares = vec4<f32>();
  //#for q in 0..QUADS
  squares += squares_${q};
  //#end
  shares[thread] = (squares.x + squares.y) + (squares.z + squares.w);
  workgroupBarrier();
  for (var reach = THREADS / 2u; reach > 0u; reach >>= 1u) {
    if thread < reach { shares[thread] += shares[thread + reach]; }
    workgroupBarrier();
  }
  if thread == 0u { partials[p.first + group.x] = shares[0]; }
}
