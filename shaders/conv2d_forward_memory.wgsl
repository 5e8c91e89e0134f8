// What every kernel of the forward pass reads and writes, and what may follow its sums.

override OUTPUT: u32 = 3u;

//#include conv2d_params
@group(0) @binding(1) var<storage, read> x: array<vec4<stored>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<stored>>;
//#include conv2d_epilogue
