//! The kernels that the passes of a convolution can be done by, and the table that picks one.

use super::winograd::Winograd;
use super::{Geometry, PASSES};
use crate::gpu::{AdapterClass, Gpu, Kernel, Shader};

/// How a pass is computed.
#[derive(Clone, Copy)]
pub enum Method {
    /// As the formula has it.
    Direct(Tiling),
    /// By Winograd's F(2×2, 3×3), rows being patches of 2×2 pixels.
    Winograd(Tiling),
}

/// The tile of a matrix product that one workgroup computes.
#[derive(Clone, Copy)]
pub enum Tiling {
    /// Eight lanes with registers alone: rows × vec4 columns a lane, loads shared by `lanes` lanes.
    Lanes { lanes: u32, rows: u32, columns: u32 },
    /// Workgroup memory: rows × columns of a workgroup.
    Tiled { rows: u32, columns: u32 },
}

impl Tiling {
    /// The kernel for this tile, of the two shaders of a pass. A workgroup does one tile.
    pub fn kernel(self, by_lanes: &'static Shader, tiled: &'static Shader) -> Kernel {
        match self {
            Self::Lanes { lanes, rows, columns } => {
                Kernel::new(by_lanes).with("LANES", lanes).with("ROWS", rows).with("COLS", columns)
            }
            Self::Tiled { rows, columns } => {
                Kernel::new(tiled).with("BM", rows).with("BN", columns)
            }
        }
    }

    /// Rows of a tile.
    pub fn rows(self) -> usize {
        match self {
            Self::Lanes { rows, .. } | Self::Tiled { rows, .. } => rows as usize,
        }
    }

    /// Tiles that cover a product of `rows` × `columns`.
    pub fn count(self, rows: usize, columns: usize) -> usize {
        let width = match self {
            Self::Lanes { columns, .. } => 32 * columns,
            Self::Tiled { columns, .. } => columns,
        };
        rows.div_ceil(self.rows()) * columns.div_ceil(width as usize)
    }
}

type Named<T> = (&'static str, T);

const TILED_64: Named<Tiling> = ("tiled 64x64", Tiling::Tiled { rows: 64, columns: 64 });
const TILED_128: Named<Tiling> = ("tiled 128x128", Tiling::Tiled { rows: 128, columns: 128 });
const TILED_128_64: Named<Tiling> = ("tiled 128x64", Tiling::Tiled { rows: 128, columns: 64 });

const fn lanes(rows: u32, columns: u32) -> Tiling {
    Tiling::Lanes { lanes: 8, rows, columns }
}

const fn registers(rows: u32, columns: u32) -> Tiling {
    Tiling::Lanes { lanes: 1, rows, columns }
}

/// Workgroups below which a smaller tile keeps more of a GPU busy than a larger one.
pub const BUSY: usize = 256;

const LANES: &[Named<Tiling>] =
    &[("lanes 32x2", lanes(32, 2)), ("lanes 32x1", lanes(32, 1)), ("lanes 16x2", lanes(16, 2))];

/// Tilings for a product of `rows` × `columns`, the best for this adapter first, from `lanes` where
/// lanes can share loads.
fn tilings(gpu: &Gpu, rows: usize, columns: usize, lanes: &[Named<Tiling>]) -> Vec<Named<Tiling>> {
    let shared = if gpu.subgroup_size() == Some(8) { lanes } else { &[] };
    let mut registers =
        [("registers 16x4", registers(16, 4)), ("registers 16x2", registers(16, 2))];
    if columns <= 64 {
        registers.swap(0, 1);
    }
    let count = |(_, tiling): Named<Tiling>| tiling.count(rows, columns);
    let mut tiled = vec![TILED_64];
    if count(TILED_128_64) >= BUSY {
        tiled.insert(0, TILED_128_64);
    }
    if columns > 64 && count(TILED_128) >= BUSY {
        tiled.insert(0, TILED_128);
    }
    let all = [TILED_128, TILED_128_64].into_iter().filter(|t| !tiled.iter().any(|u| u.0 == t.0));
    let all: Vec<_> = tiled.iter().copied().chain(all).collect();
    match gpu.class() {
        AdapterClass::Software => [shared, &registers, &all].concat(),
        _ => [&all[..], &registers, shared].concat(),
    }
}

/// Kernels for a product of `rows` × `columns`, with Winograd's algorithm where it applies.
fn methods(
    gpu: &Gpu,
    (rows, columns): (usize, usize),
    winograd: Option<Winograd>,
) -> Vec<Named<Method>> {
    let direct = tilings(gpu, rows, columns, LANES);
    let direct = direct.into_iter().map(|(name, tiling)| (name, Method::Direct(tiling)));
    let Some(winograd) = winograd else { return direct.collect() };
    const SHARED: &[Named<Tiling>] =
        &[("winograd lanes 32x2", lanes(32, 2)), ("winograd lanes 16x2", lanes(16, 2))];
    const OTHERS: &[Named<Tiling>] = &[
        ("winograd registers 16x2", registers(16, 2)),
        ("winograd tiled 64x64", Tiling::Tiled { rows: 64, columns: 64 }),
        ("winograd tiled 128x64", Tiling::Tiled { rows: 128, columns: 64 }),
        ("winograd tiled 128x128", Tiling::Tiled { rows: 128, columns: 128 }),
    ];
    let shared = gpu.subgroup_size() == Some(8);
    let all = [if shared { SHARED } else { &[] }, OTHERS].concat();
    let all = all.into_iter().map(|(name, tiling)| (name, Method::Winograd(tiling)));
    // As `--tune` found it on software adapters: the transforms of patches and weight must be small
    // beside the products.
    let [fewer, more] = winograd.channels();
    let pays = fewer >= 64 && 4 * winograd.all_patches() >= more;
    match gpu.class() {
        AdapterClass::Software if pays => all.chain(direct).collect(),
        _ => direct.chain(all).collect(),
    }
}

/// How to do the forward pass.
pub fn forward(gpu: &Gpu, geometry: &Geometry) -> Method {
    let product = (geometry.y.pixels(), geometry.y.c);
    let methods = methods(gpu, product, Winograd::forward(geometry));
    gpu.choose_kernel(PASSES[0], geometry.sizes(), &methods)
}

/// How to do the backward pass by the input, whose largest class of pixels has `rows`.
pub fn backward_data(gpu: &Gpu, geometry: &Geometry, rows: usize) -> Method {
    let methods = methods(gpu, (rows, geometry.x.c), Winograd::backward_data(geometry));
    gpu.choose_kernel(PASSES[1], geometry.sizes(), &methods)
}

/// How to do the backward pass by a weight of so many `quads` of input channels at all taps.
pub fn backward_weight(gpu: &Gpu, geometry: &Geometry, quads: usize) -> Tiling {
    // Eight lanes share rows by fours of channels: 32 at least.
    let tilings = tilings(gpu, quads * 4, geometry.y.c, &LANES[..2]);
    gpu.choose_kernel(PASSES[2], geometry.sizes(), &tilings)
}
