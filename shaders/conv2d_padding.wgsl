// What of a convolution need not be computed, because it only meets padding. Lines are an image's rows, or
// its columns; a span of them is its first and the one past its last.

// The rows first … last and columns first … last, of a raster of so many columns, that hold its cells from
// `first` to `last`, row by row.
fn rectangle(first: u32, last: u32, columns: u32) -> vec4<u32> {
  let top = first / columns;
  let bottom = last / columns;
  let one = top == bottom;
  return vec4(top, bottom,
    select(0u, first % columns, one), select(columns - 1u, last % columns, one));
}

// The span of `count` output lines that read one of `size` input lines through the window's lines
// taps.x … taps.y.
fn reached(taps: vec2<u32>, count: u32, stride: u32, padding: u32, size: u32) -> vec2<u32> {
  let start = (max(padding, taps.y) - taps.y + stride - 1u) / stride;
  let end = (max(size + padding, taps.x) - taps.x + stride - 1u) / stride;
  return vec2(min(start, count), clamp(end, min(start, count), count));
}

// The span of the window's `count` lines through which the output lines outputs.x … outputs.y read one of
// `size` input lines.
fn reaching(outputs: vec2<u32>, count: u32, stride: u32, padding: u32, size: u32) -> vec2<u32> {
  let start = max(padding, outputs.y * stride) - outputs.y * stride;
  let end = max(size + padding, outputs.x * stride) - outputs.x * stride;
  return vec2(start, min(end, count));
}

// The span of the window's `count` lines through which one of `size` output lines read the input lines
// padded.x … padded.y, the padding's first being line 0. These are alike modulo the stride, and so are the
// window's lines: the span's first, and every stride-th from there.
fn read_through(padded: vec2<u32>, count: u32, stride: u32, size: u32) -> vec2<u32> {
  let start = padded.x % stride + (max(padded.x / stride + 1u, size) - size) * stride;
  return vec2(start, min(padded.y + 1u, count));
}
