// Helpers shared by all kernels; no bindings, no entry points.

// Number of this workgroup where a one-dimensional dispatch was folded into two dimensions, because
// an adapter need not take more than 65,535 workgroups along one.
fn flat_group(group: vec3<u32>, groups: vec3<u32>) -> u32 {
  return group.y * groups.x + group.x;
}

