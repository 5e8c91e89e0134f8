// A batch norm by running statistics after a convolution, as scale·y + shift; the kernel has its γ, β and
// running mean and variance, and p tells ε.

struct Affine { scale: vec4<f32>, shift: vec4<f32> }

fn affine_of(column: u32) -> Affine {
  let inverse = 1.0 / sqrt(running[p.co4 + column] + p.epsilon);
  let scale = gamma[column] * inverse;
  return Affine(scale, beta[column] - running[column] * scale);
}
