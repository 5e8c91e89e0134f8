// conv2d backward by the input, in registers alone: d_x[m, ci] = Σ_(tap, co) d_y[pixel, co] · weight[tap,
// ci, co] over the taps at which output pixel `pixel` read input pixel m. Reference:
// `reference_data` in src/ops/conv2d/reference.rs.
//
// As conv2d_forward_lanes.wgsl, with rows = input pixels and columns = input channels. With stride
// s > 1 the input pixels fall into s·s classes by position modulo s, and each class is reached by
// its own subset of the taps; group.z is the class, so no tap is computed in vain.

override LANES: u32 = 8u;
override ROWS: u32 = 16u;  // a multiple of LANES
override COLS: u32 = 2u;

//#include conv2d_params
//#include conv2d_operands
//#include conv2d_padding
//#include conv2d_rows
@group(0) @binding(3) var<storage, read_write> d_x: array<vec4<stored>>;

@compute @workgroup_size(8)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  // Neighbours are of different classes: a software adapter deals out long runs of workgroups to its threads.
  let number = group.z * groups.x * groups.y + flat_group(group, groups);
  let tile = number / groups.z;
  let class_h = number % groups.z / p.stride_w;
  let class_w = number % groups.z % p.stride_w;
  if class_h >= p.h || class_w >= p.w { return; }
  let class_rows = (p.h - class_h + p.stride_h - 1u) / p.stride_h;
  let class_columns = (p.w - class_w + p.stride_w - 1u) / p.stride_w;
  let places = class_rows * class_columns;
  let rows = p.n * places;
  let row_tiles = (rows + ROWS - 1u) / ROWS;
  let m0 = tile % row_tiles * ROWS;
  let first_column = tile / row_tiles * 8u * COLS + lane;
  if first_column - lane >= p.ci4 { return; }

  //#for j in 0..ROWS / LANES
  let m_${j} = min(m0 + ${j * LANES}u + lane % LANES, rows - 1u);
  let pixel_${j} = pixel_of(m_${j}, p.n, places);
  let image_${j} = pixel_${j}.image * p.oh;
  let ih_${j} = i32(pixel_${j}.place / class_columns * p.stride_h + class_h + p.pad_h);
  let iw_${j} = i32(pixel_${j}.place % class_columns * p.stride_w + class_w + p.pad_w);
  //#end
  //#for c in 0..COLS
  let column_${c} = min(first_column + ${c * 8}u, p.ci4 - 1u);
  //#for i in 0..ROWS
  var acc_${i}_${c} = vec4<f32>();
  //#end
  //#end

  let inputs = places_of(m0, min(m0 + ROWS, rows) - 1u, p.n, places, class_columns);
  let taps_h = read_through(inputs.xy * p.stride_h + class_h + p.pad_h, p.r, p.stride_h, p.oh);
  let taps_w = read_through(inputs.zw * p.stride_w + class_w + p.pad_w, p.s, p.stride_w, p.ow);
  let lines = (max(taps_h.y, taps_h.x) - taps_h.x + p.stride_h - 1u) / p.stride_h;
  let columns = (max(taps_w.y, taps_w.x) - taps_w.x + p.stride_w - 1u) / p.stride_w;
  //#for j in 0..ROWS / LANES
  // Output lines and columns that the first taps are of, those of every further one being one less: whole
  // numbers of strides, and negative ones wrap to more than any size.
  let top_${j} = u32((ih_${j} - i32(taps_h.x)) / i32(p.stride_h));
  let left_${j} = u32((iw_${j} - i32(taps_w.x)) / i32(p.stride_w));
  //#end
  // One loop over taps and channels: software adapters take long to begin another.
  var line = 0u;
  var column = 0u;
  var c4 = 0u;
  var tap = (taps_h.x * p.s + taps_w.x) * p.ci4 * 4u * p.co4;
  for (var left = lines * columns * p.co4; left > 0u; left--) {
    //#for j in 0..ROWS / LANES
    let h_${j} = top_${j} - line;
    let w_${j} = left_${j} - column;
    let inside_${j} = h_${j} < p.oh && w_${j} < p.ow;
    let base_${j} = select(0u, ((image_${j} + h_${j}) * p.ow + w_${j}) * p.co4, inside_${j});
    let d_${j} = select(vec4<f32>(), left_at(base_${j} + c4), inside_${j});
    //#end
    // One sum after the other: its four steps stay in registers.
    //#for c in 0..COLS
    //#for e in 0..4
    let t_${e}_${c} = right_at(tap + (column_${c} * 4u + ${e}u) * p.co4);
    //#end
    //#for e in 0..4
    let w_${e}_${c} = vec4(t_0_${c}[${e}], t_1_${c}[${e}], t_2_${c}[${e}], t_3_${c}[${e}]);
    //#end
    //#for i in 0..ROWS
    //#for e in 0..4
    //#if LANES > 1
    let d_${e}_${i}_${c} = subgroupBroadcast(d_${i / LANES}[${e}], ${i % LANES}u);
    //#else
    let d_${e}_${i}_${c} = d_${i}[${e}];
    //#end
    //#end
    acc_${i}_${c} = acc_${i}_${c} + d_0_${i}_${c} * w_0_${c} + d_1_${i}_${c} * w_1_${c}
      + d_2_${i}_${c} * w_2_${c} + d_3_${i}_${c} * w_3_${c};
    //#end
    //#end
    c4++;
    tap++;
    if c4 == p.co4 {
      c4 = 0u;
      column++;
      tap += (p.stride_w * p.ci4 * 4u - 1u) * p.co4;
    }
    if column == columns {
      column = 0u;
      line++;
      tap += (p.stride_h * p.s - columns * p.stride_w) * p.ci4 * 4u * p.co4;
    }
  }

  var pixel = pixel_of(m0, p.n, places);
  //#for i in 0..ROWS
  if m0 + ${i}u < rows {
    let ih = pixel.place / class_columns * p.stride_h + class_h;
    let iw = pixel.place % class_columns * p.stride_w + class_w;
    let base = ((pixel.image * p.h + ih) * p.w + iw) * p.ci4;
    //#for c in 0..COLS
    if first_column + ${c * 8}u < p.ci4 {
      if p.accumulate != 0u { acc_${i}_${c} += vec4<f32>(d_x[base + column_${c}]); }
      d_x[base + column_${c}] = vec4<stored>(acc_${i}_${c});
    }
    //#end
  }
  pixel = next_pixel(pixel, p.n, places);
  //#end
}
