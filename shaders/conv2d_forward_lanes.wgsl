// conv2d forward in registers alone: y[m, co] = Σ_(tap, ci) x[pixel m at tap, ci] · weight[tap, ci, co].
// Reference: `reference` in src/ops/conv2d/reference.rs.
//
// For software adapters, where workgroup memory and barriers cost more than they save. Eight lanes
// compute ROWS output pixels × 32·COLS output channels; lane l holds 4·COLS channels of every row.
// A load costs such an adapter dozens of multiplications. With LANES = 8, each lane loads the input
// of rows l, l + 8, … only and the others get it by subgroup broadcast; with LANES = 1, for adapters
// without subgroups of eight, every lane loads every row.

override LANES: u32 = 8u;
override ROWS: u32 = 16u;  // a multiple of LANES
override COLS: u32 = 2u;
// Input channels of a group of four that are not padding: fewer in a network's first layer alone.
override DEPTH: u32 = 4u;
override OUTPUT: u32 = 3u;

//#include conv2d_params
//#include conv2d_operands
//#include conv2d_epilogue
//#include conv2d_padding
//#include conv2d_rows

@compute @workgroup_size(8)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let tile = flat_group(group, groups);
  let places = p.oh * p.ow;
  let rows = p.n * places;
  let row_tiles = (rows + ROWS - 1u) / ROWS;
  let m0 = tile % row_tiles * ROWS;
  let first_column = tile / row_tiles * 8u * COLS + lane;
  if first_column - lane >= p.co4 { return; }

  //#for j in 0..ROWS / LANES
  let m_${j} = min(m0 + ${j * LANES}u + lane % LANES, rows - 1u);
  let pixel_${j} = pixel_of(m_${j}, p.n, places);
  let image_${j} = pixel_${j}.image * p.h;
  let ih_${j} = i32(pixel_${j}.place / p.ow * p.stride_h) - i32(p.pad_h);
  let iw_${j} = (i32(pixel_${j}.place % p.ow * p.stride_w) - i32(p.pad_w)) * i32(p.ci4);
  //#end
  //#for c in 0..COLS
  let column_${c} = min(first_column + ${c * 8}u, p.co4 - 1u);
  //#for i in 0..ROWS
  var acc_${i}_${c} = vec4<f32>();
  //#end
  //#end

  // Channels being the fastest index, the window's row r covers consecutive vec4s of an image
  // row, starting at iw·ci4; those outside 0 … `line` are padding.
  let line = p.w * p.ci4;
  let outputs = places_of(m0, min(m0 + ROWS, rows) - 1u, p.n, places, p.ow);
  let taps = reaching(outputs.xy, p.r, p.stride_h, p.pad_h, p.h);
  let span = reaching(outputs.zw, p.s, p.stride_w, p.pad_w, p.w) * p.ci4;
  // One loop over the window's rows and what they cover: software adapters take long to begin another.
  var r = taps.x;
  var at = span.x;
  var k = (r * p.s * p.ci4 + at) * 4u * p.co4;
  for (var left = (max(taps.y, taps.x) - taps.x) * (max(span.y, span.x) - span.x); left > 0u; left--) {
    //#for j in 0..ROWS / LANES
    let h_${j} = u32(ih_${j} + i32(r));
    let row_${j} = (image_${j} + h_${j}) * line;
    let end_${j} = select(0u, line, h_${j} < p.h);
    let at_${j} = u32(iw_${j}) + at;
    let inside_${j} = at_${j} < end_${j};
    let x_${j} = select(vec4<f32>(),
      left_at(select(0u, row_${j} + at_${j}, inside_${j})), inside_${j});
    //#end
    // One sum after the other: its four steps stay in registers.
    //#for c in 0..COLS
    //#for e in 0..DEPTH
    let w_${e}_${c} = right_at(k + ${e}u * p.co4 + column_${c});
    //#end
    //#for i in 0..ROWS
    //#for e in 0..DEPTH
    //#if LANES > 1
    let x_${e}_${i}_${c} = subgroupBroadcast(x_${i / LANES}[${e}], ${i % LANES}u);
    //#else
    let x_${e}_${i}_${c} = x_${i}[${e}];
    //#end
    //#end
    acc_${i}_${c} = acc_${i}_${c}
      //#for e in 0..DEPTH
      + x_${e}_${i}_${c} * w_${e}_${c}
      //#end
      ;
    //#end
    //#end
    at++;
    k += 4u * p.co4;
    if at == span.y {
      at = span.x;
      r++;
      k += (p.s * p.ci4 - span.y + span.x) * 4u * p.co4;
    }
  }

  var pixel = pixel_of(m0, p.n, places);
  //#for i in 0..ROWS
  let row_${i} = (pixel.image * places + pixel.place) * p.co4;
  pixel = next_pixel(pixel, p.n, places);
  //#end
  //#for c in 0..COLS
  if first_column + ${c * 8}u < p.co4 {
    //#if BIAS
    let bias_${c} = bias[column_${c}];
    //#end
    //#if AFFINE
    let affine_${c} = affine_of(column_${c});
    //#end
    //#for i in 0..ROWS
    //#if BIAS
    acc_${i}_${c} += bias_${c};
    //#end
    if m0 + ${i}u < rows {
      let at = row_${i} + column_${c};
      //#if AFFINE
      acc_${i}_${c} = affine_${c}.scale * acc_${i}_${c} + affine_${c}.shift;
      //#end
      //#if RESIDUAL
      acc_${i}_${c} += vec4<f32>(residual[at]);
      //#end
      //#if RELU
      acc_${i}_${c} = select(acc_${i}_${c}, vec4<f32>(), acc_${i}_${c} < vec4<f32>());
      //#end
      y[at] = vec4<stored>(acc_${i}_${c});
    }
    //#end
    //#if STATS
    var sum = vec4<f32>();
    //#for i in 0..ROWS
    sum += select(vec4<f32>(), acc_${i}_${c}, m0 + ${i}u < rows);
    //#end
    let mean = sum / f32(min(ROWS, rows - m0));
    var m2 = vec4<f32>();
    //#for i in 0..ROWS
    let d_${i} = select(vec4<f32>(), acc_${i}_${c} - mean, m0 + ${i}u < rows);
    m2 += d_${i} * d_${i};
    //#end
    partials[m0 / ROWS * 2u * p.co4 + column_${c}] = mean;
    partials[(m0 / ROWS * 2u + 1u) * p.co4 + column_${c}] = m2;
    //#end
  }
  //#end
}
