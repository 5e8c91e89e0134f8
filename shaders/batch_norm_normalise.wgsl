// What batch norm writes; the kernel has x, y and the residual.

override RELU: u32 = 0u;
override RESIDUAL: u32 = 0u;

// y = scale·x + shift, then + residual, then max(·, 0), as asked.
fn normalise(at: u32, scale: vec4<f32>, shift: vec4<f32>) {
  var v = scale * vec4<f32>(x[at]) + shift;
  //#if RESIDUAL
  v += vec4<f32>(residual[at]);
  //#end
  //#if RELU
  v = select(v, vec4<f32>(), v < vec4<f32>());
  //#end
  y[at] = vec4<stored>(v);
}
