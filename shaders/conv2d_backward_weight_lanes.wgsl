// conv2d backward by the weight, in registers alone: d_w[(tap, ci), co] = Σ_pixels x[pixel at tap, ci] ·
// d_y[pixel, co]. Reference: `reference_weight` in src/ops/conv2d/reference.rs.
//
// Eight lanes compute ROWS rows (groups of four input channels at a tap, one group after the other)
// × 32·COLS output channels, over `chunk` output image rows of the split they belong to;
// conv2d_sum.wgsl adds the splits up. Lane l loads the input of row groups l, l + 8, …
// and, with LANES = 8, gives it to the others by subgroup broadcast; with LANES = 1, for adapters
// without subgroups of eight, each lane loads all rows. Output pixels at which all taps of the tile
// read padding are passed over.

override LANES: u32 = 8u;
override ROWS: u32 = 32u;  // a multiple of 4·LANES
override COLS: u32 = 1u;
// Input channels of a group of four that are not padding: fewer in a network's first layer alone.
override DEPTH: u32 = 4u;
// Pixels in a round of the loop.
override STEP: u32 = 4u;

//#include conv2d_params
//#include conv2d_operands
//#include conv2d_padding
//#include words
@group(0) @binding(3) var<storage, read_write> d_w: array<packed>;

@compute @workgroup_size(8)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let tile = flat_group(group, groups);
  let row_quads = p.r * p.s * p.ci4;
  let row_tiles = (row_quads + ROWS / 4u - 1u) / (ROWS / 4u);
  let column_tiles = (p.co4 + 8u * COLS - 1u) / (8u * COLS);
  let split = tile / (row_tiles * column_tiles);
  if split >= p.splits { return; }
  let first_quad = tile % row_tiles * (ROWS / 4u);
  let first_column = tile / row_tiles % column_tiles * 8u * COLS + lane * ${QUADS}u;

  //#for j in 0..ROWS / 4 / LANES
  let quad_${j} = min(first_quad + ${j * LANES}u + lane % LANES, row_quads - 1u);
  let tap_${j} = quad_${j} / p.ci4;
  let c4_${j} = quad_${j} % p.ci4;
  // Negative numbers wrap, here and below.
  let dh_${j} = tap_${j} / p.s - p.pad_h;
  let dw_${j} = tap_${j} % p.s - p.pad_w;
  let offset_${j} = (dh_${j} * p.w + dw_${j}) * p.ci4 + c4_${j};
  //#end
  //#for c in 0..COLS
  let column_${c} = min(first_column + ${c / QUADS * 8 * QUADS + c % QUADS}u, p.co4 - 1u);
  //#for i in 0..ROWS
  var acc_${i}_${c} = vec4<f32>();
  //#end
  //#end

  let first_tap = first_quad / p.ci4;
  let last_tap = min(first_quad + ROWS / 4u - 1u, row_quads - 1u) / p.ci4;
  let taps = rectangle(first_tap, last_tap, p.s);
  let lines = reached(taps.xy, p.oh, p.stride_h, p.pad_h, p.h);
  let columns = reached(taps.zw, p.ow, p.stride_w, p.pad_w, p.w);
  // Of the split's output image rows, those among `lines`, counted through all images.
  let height = lines.y - lines.x;
  let first = split * p.chunk;
  let last = min(first + p.chunk, p.n * p.oh);
  let first_line = first / p.oh * height + clamp(first % p.oh, lines.x, lines.y) - lines.x;
  let last_line = last / p.oh * height + clamp(last % p.oh, lines.x, lines.y) - lines.x;
  let pixels = (last_line - first_line) * (columns.y - columns.x);
  // The first pixel's window without padding, and where in x and d_y this pixel is; then what is between the
  // last pixel of a line and the first of the next, and between those of images.
  let image = first_line / max(height, 1u);
  let line = first_line % max(height, 1u) + lines.x;
  var top = line * p.stride_h;
  var left = columns.x * p.stride_w;
  var from_x = ((image * p.h + top) * p.w + left) * p.ci4;
  var from_y = ((image * p.oh + line) * p.ow + columns.x) * p.co4;
  let width = columns.y - columns.x;
  let next_line = vec2((p.stride_h * p.w - width * p.stride_w) * p.ci4, (p.ow - width) * p.co4);
  let next_image = vec2((p.h - height * p.stride_h) * p.w * p.ci4, (p.oh - height) * p.ow * p.co4);
  for (var pixel = 0u; pixel < pixels; pixel += STEP) {
    //#for u in 0..STEP
    let live_${u} = pixel + ${u}u < pixels;
    //#for j in 0..ROWS / 4 / LANES
    let inside_${j}_${u} = live_${u} && top + dh_${j} < p.h && left + dw_${j} < p.w;
    let x_${j}_${u} = select(vec4<f32>(),
      left_at(select(0u, from_x + offset_${j}, inside_${j}_${u})), inside_${j}_${u});
    //#end
    //#for c in 0..COLS
    let d_${c}_${u} = select(vec4<f32>(), right_at(select(0u, from_y, live_${u}) + column_${c}), live_${u});
    //#end
    left += p.stride_w;
    from_x += p.stride_w * p.ci4;
    from_y += p.co4;
    if left == columns.y * p.stride_w {
      left = columns.x * p.stride_w;
      top += p.stride_h;
      from_x += next_line.x;
      from_y += next_line.y;
    }
    if top == lines.y * p.stride_h {
      top = lines.x * p.stride_h;
      from_x += next_image.x;
      from_y += next_image.y;
    }
    //#end
    // One sum after the other: its steps stay in registers.
    //#for i in 0..ROWS / 4
    //#for e in 0..DEPTH
    //#for u in 0..STEP
    //#if LANES > 1
    let b_${i}_${e}_${u} = subgroupBroadcast(x_${i / LANES}_${u}[${e}], ${i % LANES}u);
    //#else
    let b_${i}_${e}_${u} = x_${i}_${u}[${e}];
    //#end
    //#end
    //#for c in 0..COLS
    {
      var sum = acc_${i * 4 + e}_${c};
      //#for u in 0..STEP
      sum += b_${i}_${e}_${u} * d_${c}_${u};
      //#end
      acc_${i * 4 + e}_${c} = sum;
    }
    //#end
    //#end
    //#end
  }

  //#for c in 0..COLS / QUADS
  if first_column + ${c * 8 * QUADS}u < p.co4 {
    //#for i in 0..ROWS / 4
    if first_quad + ${i}u < row_quads {
      let at = (split * row_quads + first_quad + ${i}u) * 4u * p.co4 + column_${c * QUADS};
      //#for e in 0..4
      d_w[(at + ${e}u * p.co4) / ${QUADS}u] = pack(quads(
        //#for q in 0..QUADS
        acc_${i * 4 + e}_${c * QUADS + q},
        //#end
      ));
      //#end
    }
    //#end
  }
  //#end
}
