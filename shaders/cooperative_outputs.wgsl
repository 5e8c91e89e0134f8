  // What follows the sums, and their writing, of the `count` rows of the tile that are pixels, of `width4` groups of
  // four columns: those of this invocation are pixel_I_Q, or NOWHERE. What joins them is loaded before any of the
  // sums pass through the band, all at a time.
  //#for j in 0..SN / WIDTH
  {
    let column4 = column0 / 4u + column_in_tile + ${j * WIDTH / 4}u;
    //#for i in 0..SM / SIDE
    //#for q in 0..QUADS
    let live_${i}_${q} = column4 < width4 && pixel_${i}_${q} != NOWHERE;
    let at_${i}_${q} = select(0u, pixel_${i}_${q} * width4 + column4, live_${i}_${q});
    //#if ACCUMULATE
    let joins_${i}_${q} = y[at_${i}_${q}];
    //#end
    //#if RESIDUAL
    let joins_${i}_${q} = residual[at_${i}_${q}];
    //#end
    //#end
    //#end
    //#if BIAS
    let b = bias[min(column4, width4 - 1u)];
    //#end
    //#if AFFINE
    let affine = affine_of(min(column4, width4 - 1u));
    //#end
    //#if STATS
    var sum = vec4<f32>();
    //#end
    //#for i in 0..SM / SIDE
    //#include cooperative_sums
    //#for q in 0..QUADS
    var y_${i}_${q} = sums_at(band_row_${q}, band_column);
    //#if STATS
    sum += select(vec4<f32>(), y_${i}_${q}, pixel_${i}_${q} != NOWHERE);
    //#end
    //#if BIAS
    y_${i}_${q} += b;
    //#end
    //#if AFFINE
    y_${i}_${q} = affine.scale * y_${i}_${q} + affine.shift;
    //#end
    //#if ACCUMULATE + RESIDUAL
    y_${i}_${q} += vec4<f32>(joins_${i}_${q});
    //#end
    //#if RELU
    y_${i}_${q} = select(y_${i}_${q}, vec4<f32>(), y_${i}_${q} < vec4<f32>());
    //#end
    if live_${i}_${q} { y[at_${i}_${q}] = vec4<written>(y_${i}_${q}); }
    //#end
    //#end
    //#if STATS
    let mean = sum_of_rows(thread, sum) / f32(max(count, 1u));
    var m2 = vec4<f32>();
    //#for i in 0..SM / SIDE
    //#for q in 0..QUADS
    let d_${i}_${q} = select(vec4<f32>(), y_${i}_${q} - mean, pixel_${i}_${q} != NOWHERE);
    m2 += d_${i}_${q} * d_${i}_${q};
    //#end
    //#end
    m2 = sum_of_rows(thread, m2);
    if thread < BAND_COLUMNS && column4 < width4 {
      partials[row_tile * 2u * width4 + column4] = mean;
      partials[(row_tile * 2u + 1u) * width4 + column4] = m2;
    }
    //#end
  }
  //#end
