// What batch norm writes; the kernel has x and the residual.

override RELU: u32 = 0u;
override RESIDUAL: u32 = 0u;

// y = scale·x + shift, then + residual, then max(·, 0), as asked.
fn normalised(at: u32, scale: vec4<f32>, shift: vec4<f32>) -> vec4<stored> {
  var v = scale * vec4<f32>(x[at]) + shift;
  //#if RESIDUAL
  v += vec4<f32>(residual[at]);
  //#end
  //#if RELU
  v = select(v, vec4<f32>(), v < vec4<f32>());
  //#end
  return vec4<stored>(v);
}
