// Numbers of an array of f32, eight a time where WORDS, else four. Software adapters load and store one lane
// after the other, a 64-bit word as fast as a number (benches/results/README.md).

override WORDS: u32 = 0u;
//#const QUADS = 1 + WORDS

alias quads = array<vec4<f32>, ${QUADS}>;
//#if WORDS
alias packed = vec4<u64>;

fn halves(word: u64) -> vec2<f32> {
  return bitcast<vec2<f32>>(vec2(u32(word), u32(word >> 32u)));
}

fn word(halves: vec2<f32>) -> u64 {
  let bits = bitcast<vec2<u32>>(halves);
  return u64(bits.x) | u64(bits.y) << 32u;
}

fn unpack(x: packed) -> quads {
  return quads(vec4(halves(x.x), halves(x.y)), vec4(halves(x.z), halves(x.w)));
}

fn pack(x: quads) -> packed {
  return packed(word(x[0].xy), word(x[0].zw), word(x[1].xy), word(x[1].zw));
}
//#else
alias packed = vec4<f32>;

fn unpack(x: packed) -> quads {
  return quads(x);
}

fn pack(x: quads) -> packed {
  return x[0];
}
//#end
