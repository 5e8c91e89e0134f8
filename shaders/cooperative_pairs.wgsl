// Where terms lie in the weight, for kernels that read two neighbouring pixels of four channels each as
// one pixel of eight: windows of TAPS columns that begin at every second column become windows of whole
// pairs, with taps before and after that the weight has not. `Geometry::paired` in src/ops/conv2d/geometry.rs.

override TAPS: u32 = 0u;  // 0 where pixels are read as they are
override LEAD: u32 = 0u;  // taps before the first: 0 or 1

//#if TAPS
// What a window has of its pair number `s`: what lies outside need not be finite.
fn of_window(pair: packet, s: u32) -> packet {
  let tap = 2u * s - LEAD;
  let low = select(vec2<u32>(), pair.xy, tap < TAPS);
  return packet(low, select(vec2<u32>(), pair.zw, tap + 1u < TAPS));
}
//#end

// The weight's row of a term, that is, of a tap and an input channel.
fn row_of_weight(term: u32) -> u32 {
  //#if TAPS
  //#const TAPS_OF_PAIRS = (TAPS + LEAD + 1) / 2 * 2
  let tap = term / 4u % TAPS_OF_PAIRS - LEAD;
  return select(NOWHERE, (term / ${4 * TAPS_OF_PAIRS}u * TAPS + tap) * 4u + term % 4u, tap < TAPS);
  //#else
  return term;
  //#end
}

// Rows that the weight has.
fn rows_of_weight() -> u32 {
  //#if TAPS
  return p.r * ${TAPS * 4}u;
  //#else
  return p.r * p.s * p.ci4 * 4u;
  //#end
}
