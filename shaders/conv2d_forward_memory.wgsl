// What every kernel of the forward pass reads and writes, and what may follow its sums.

override OUTPUT: u32 = 3u;

//#include conv2d_params
@group(0) @binding(1) var<storage, read> x: array<packet>;
@group(0) @binding(2) var<storage, read> weight: array<packet>;
//#include conv2d_epilogue
