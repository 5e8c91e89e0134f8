  // Sums go from fragments to rows of four columns, WIDTH columns of every subgroup at a time: where this
  // subgroup's lie in the band, and which sums this invocation takes from it.
  //#const QUADS = BM / SM * SIDE * BAND_COLUMNS / 4 / THREADS
  //#for f in 0..WIDTH / SIDE
  let to_${f} = subgroup % ${BM / SM}u * ${SIDE * BAND_COLUMNS}u + subgroup / ${BM / SM}u * WIDTH + ${f * SIDE}u;
  //#end
  let band_column = thread % ${BAND_COLUMNS / 4}u * 4u;
  let column_in_tile = (band_column / WIDTH * SN + band_column % WIDTH) / 4u;
  //#for q in 0..QUADS
  let band_row_${q} = thread / ${BAND_COLUMNS / 4}u + ${q * THREADS * 4 / BAND_COLUMNS}u;
  let row_in_tile_${q} = band_row_${q} / SIDE * SM + band_row_${q} % SIDE;
  //#end
