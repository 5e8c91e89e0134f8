// What both passes of max_pool2d begin with. Threads follow one another along a line of places, four
// channels of a place a thread. Workgroups are numbered within a line, and lines through the batch, so that
// only one division differs from thread to thread.

override KERNEL_H: u32 = 3u;
override KERNEL_W: u32 = 3u;
override STRIDE_H: u32 = 2u;
override STRIDE_W: u32 = 2u;
override THREADS: u32 = 128u;

struct Params {
  n: u32, h: u32, w: u32, c4: u32,
  oh: u32, ow: u32, padding_h: u32, padding_w: u32,
  accumulate: u32,
}
@group(0) @binding(0) var<uniform> p: Params;

struct Place { image: u32, row: u32, column: u32, c: u32 }

// The thread's place where an image has so many lines; it may be beyond the last.
fn place_of(group: vec3<u32>, groups: vec3<u32>, thread: u32, lines: u32) -> Place {
  let line = group.z * groups.y + group.y;
  let along = group.x * THREADS + thread;
  return Place(line / lines, line % lines, along / p.c4, along % p.c4);
}
