  // Sums go from fragments to rows of four columns, WIDTH columns of every subgroup at a time: where this
  // subgroup's lie in the band, and which sums this invocation takes from it.
  //#const QUADS = BAND_ROWS * BAND_COLUMNS / THREADS
  //#for f in 0..WIDTH / SIDE
  let to_${f} = (subgroup % ${BM / SM}u * ${SIDE * BAND_STRIDE}u + subgroup / ${BM / SM}u * ${WIDTH / 4}u + ${f * SIDE / 4}u) * BAND_GROUP;
  //#end
  let band_column = thread % BAND_COLUMNS;
  let column_in_tile = band_column / ${WIDTH / 4}u * ${SN / 4}u + band_column % ${WIDTH / 4}u;
  //#for q in 0..QUADS
  let band_row_${q} = thread / BAND_COLUMNS + ${q * THREADS / BAND_COLUMNS}u;
  let row_in_tile_${q} = band_row_${q} / SIDE * SM + band_row_${q} % SIDE;
  //#end
