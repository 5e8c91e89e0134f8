// What gradients pass where a ReLU may follow a batch norm; the kernel has x, d_y and y.

// d_z is d_y where the ReLU let z through: where y > 0 if a residual joined (2), else where
// scale·x + shift > 0 (1), everywhere without ReLU (0).
override MASK: u32 = 0u;

fn through(at: u32, scale: vec4<f32>, shift: vec4<f32>) -> vec4<f32> {
  let d = vec4<f32>(d_y[at]);
  //#if MASK == 2
  return select(vec4<f32>(), d, y[at] > vec4<stored>());
  //#else
  //#if MASK == 1
  return select(vec4<f32>(), d, scale * vec4<f32>(x[at]) + shift > vec4<f32>());
  //#else
  return d;
  //#end
  //#end
}
