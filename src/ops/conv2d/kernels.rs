//! The kernels that the passes of a convolution can be done by, and the table that picks one.

use super::PASSES;
use super::estimate::{LongSums, PROCESSORS, most_parts};
use super::geometry::Geometry;
use super::sharing::BUSY;
use super::tiling::{Cooperative, Numbers, Tiling};
use super::winograd::Winograd;
use crate::gpu::{AdapterClass, Gpu};
use crate::tensor::Dtype;

/// How a pass is computed.
#[derive(Clone, Copy)]
pub enum Method {
    /// As the formula has it.
    Direct(Tiling),
    /// By Winograd's F(2×2, 3×3), rows being patches of 2×2 pixels.
    Winograd(Tiling),
}

type Named<T> = (&'static str, T);

const TILED_64: Named<Tiling> = ("tiled 64x64", Tiling::Tiled { rows: 64, columns: 64 });
const TILED_128: Named<Tiling> = ("tiled 128x128", Tiling::Tiled { rows: 128, columns: 128 });
const TILED_128_64: Named<Tiling> = ("tiled 128x64", Tiling::Tiled { rows: 128, columns: 64 });

/// Tiles in registers alone, one list that reads the operands themselves and one that reads texels.
type Lanes = [&'static [Named<Tiling>]; 2];

const fn lanes(rows: u32, columns: u32) -> Tiling {
    Tiling::Lanes { lanes: 8, rows, columns, texels: false }
}

const fn registers(rows: u32, columns: u32) -> Tiling {
    Tiling::Lanes { lanes: 1, rows, columns, texels: false }
}

/// A tile in registers alone that reads its operands as texels.
const fn texels(tiling: Tiling) -> Tiling {
    match tiling {
        Tiling::Lanes { lanes, rows, columns, .. } => {
            Tiling::Lanes { lanes, rows, columns, texels: true }
        }
        other => other,
    }
}

/// What an adapter offers of both lists: texels first where these are faster, if copying the operands `pays`.
fn in_order(gpu: &Gpu, [arrays, texels]: Lanes, pays: bool) -> Vec<Named<Tiling>> {
    match (gpu.has_texels(), pays && gpu.report().prefers_texels()) {
        (true, true) => [texels, arrays].concat(),
        (true, false) => [arrays, texels].concat(),
        (false, _) => arrays.to_vec(),
    }
}

/// Sizes of what is computed as matrix products.
#[derive(Clone, Copy)]
struct Product {
    rows: usize,
    columns: usize,
    /// Products of these sizes.
    count: usize,
    /// Terms of each sum.
    terms: usize,
    /// Parts that workgroups can share each sum in, whatever the tile.
    parts: usize,
    /// Whether two pixels can be read as one.
    pairs: bool,
}

impl Product {
    /// [`Product::order`] for tiles on matrix units, with the lower of two alike in front where all are done
    /// sooner then.
    fn order_on_units(self, tilings: Vec<Named<Tiling>>) -> Vec<Named<Tiling>> {
        let mut tilings = self.order(tilings, ENOUGH_ON_UNITS);
        if let [(SQUARE_NAME, square), (LOW_NAME, low), ..] = tilings[..]
            && self.height_of_rounds(low) < self.height_of_rounds(square)
        {
            tilings.swap(0, 1);
        }
        tilings
    }

    /// `tilings` and those in short steps, of which that of the size in front goes before it where sums are so
    /// short that most of a tile's time is not multiplying. As found on an H200.
    fn with_short_steps(
        self,
        mut tilings: Vec<Named<Tiling>>,
        short: Vec<Named<Tiling>>,
    ) -> Vec<Named<Tiling>> {
        const SHORT: usize = 256;
        let size = |(_, tiling): &Named<Tiling>| [tiling.rows(), tiling.columns()];
        let first = tilings.first().filter(|_| self.terms < SHORT).map(size);
        tilings.extend(short);
        let of_this_size = |tiling: &Named<Tiling>| Some(size(tiling)) == first;
        if let Some(best) = tilings.iter().rposition(of_this_size) {
            tilings[..=best].rotate_right(1);
        }
        tilings
    }

    /// Rows of all the tiles that one of the processors does after the other, which tells how long the
    /// product takes: the last round as long as any, however few its tiles are.
    fn height_of_rounds(self, tiling: Tiling) -> usize {
        let tiles = self.count * tiling.count(self.rows, self.columns);
        let parts = (BUSY / tiles).max(1);
        (tiles * parts).div_ceil(PROCESSORS) * tiling.rows() / parts
    }

    /// `tilings`, the preferred first and the smallest last, with that in front which suits a GPU: the
    /// first that does not exceed the product and of which there are `least`, else the smallest. As found
    /// on an H200.
    fn order(self, mut tilings: Vec<Named<Tiling>>, least: usize) -> Vec<Named<Tiling>> {
        let Self { rows, columns, count, parts, .. } = self;
        let fits = |(_, tiling): &Named<Tiling>| {
            let (height, width) = (tiling.rows(), tiling.columns());
            let filled = parts == 1 || 128 * rows >= 3 * height * width;
            let tiles = count * parts * tiling.count(rows, columns);
            width <= columns.max(64) && filled && tiles >= least
        };
        let end = tilings.iter().position(fits).map_or(tilings.len(), |best| best + 1);
        tilings[..end].rotate_right(end.min(1));
        tilings
    }
}

const LANES: Lanes = [
    &[("lanes 32x2", lanes(32, 2)), ("lanes 16x2", lanes(16, 2))],
    &[("texels 32x2", texels(lanes(32, 2))), ("texels 16x2", texels(lanes(16, 2)))],
];
/// Where padding is much of what is read: it is passed over where a tile has the pixels of one place.
const LANES_AT_ONE_PLACE: Lanes = [
    &[("lanes 16x2", lanes(16, 2)), ("lanes 32x2", lanes(32, 2))],
    &[("texels 16x2", texels(lanes(16, 2))), ("texels 32x2", texels(lanes(32, 2)))],
];
/// By the weight, whose rows lanes share by fours of channels: 32 at least.
const LANES_BY_FOURS: Lanes = [
    &[("lanes 32x2", lanes(32, 2))],
    &[("texels 32x2", texels(lanes(32, 2))), ("texels 64x1", texels(lanes(64, 1)))],
];
/// Tiles where lanes cannot share loads.
const REGISTERS: Lanes = [
    &[("registers 16x4", registers(16, 4)), ("registers 16x2", registers(16, 2))],
    &[
        ("texel registers 16x4", texels(registers(16, 4))),
        ("texel registers 16x2", texels(registers(16, 2))),
    ],
];
/// Of which half would be idle in wider ones.
const NARROW_REGISTERS: Lanes = [
    &[("registers 16x2", registers(16, 2)), ("registers 16x4", registers(16, 4))],
    &[
        ("texel registers 16x2", texels(registers(16, 2))),
        ("texel registers 16x4", texels(registers(16, 4))),
    ],
];

/// Whether eight lanes can give each other what they loaded.
fn lanes_share_loads(gpu: &Gpu) -> bool {
    gpu.subgroup_size() == Some(8)
}

/// Tilings in registers alone for rows that are the pixels of so many images.
fn alone(
    gpu: &Gpu,
    Product { rows, columns, .. }: Product,
    geometry: &Geometry,
) -> Vec<Named<Tiling>> {
    /// Rows up to which a weight is read for one tile, and copying it takes longer than texels save, but for
    /// a small one.
    const FEW: usize = 16;
    const SMALL: u64 = 1 << 16;
    let images = geometry.x.n;
    // Of sixteen images, sixteen rows are of one place.
    let places = if images < 16 { 4 } else { 16 };
    let tilings = match lanes_share_loads(gpu) {
        true if images < 32 && rows <= places * images => LANES_AT_ONE_PLACE,
        true => LANES,
        false if columns <= 64 => NARROW_REGISTERS,
        false => REGISTERS,
    };
    in_order(gpu, tilings, rows > FEW || geometry.weight.bytes() <= SMALL)
}

/// Tilings in registers alone for rows that are the input channels at all taps.
fn alone_by_weight(gpu: &Gpu, Product { columns, .. }: Product) -> Vec<Named<Tiling>> {
    let tilings = match lanes_share_loads(gpu) {
        true => LANES_BY_FOURS,
        false if columns <= 64 => NARROW_REGISTERS,
        false => REGISTERS,
    };
    in_order(gpu, tilings, true)
}

/// Tilings on matrix units for a product of numbers of this type, the best first; none where the adapter
/// has no such units.
fn cooperative(gpu: &Gpu, product: Product, geometry: &Geometry) -> Vec<Named<Tiling>> {
    let half = geometry.dtype.is_half();
    let Some(units) = gpu.matrix_units(half) else { return Vec::new() };
    let [of_x, of_y] = [geometry.x.c, geometry.y.c].map(|channels| channels.is_multiple_of(8));
    let numbers = match half {
        true if of_x && of_y && units.wide_loads => Numbers::Octets,
        true if product.pairs && of_y && units.wide_loads => Numbers::Pairs,
        true => Numbers::Half,
        false => Numbers::Single,
    };
    let memory = gpu.workgroup_memory();
    let of = |sizes| on_units(sizes, |size| Cooperative::new(units, numbers, size, memory));
    match product.parts {
        1 => {
            let packed = matches!(numbers, Numbers::Octets | Numbers::Pairs);
            let short = on_units(if packed { SIZES_IN_SHORT_STEPS } else { &[] }, |size| {
                Cooperative::in_short_steps(units, numbers, size, memory)
            });
            product.with_short_steps(product.order_on_units(of(SIZES_ON_UNITS)), short)
        }
        _ => soonest_first(geometry, of(SIZES_BY_WEIGHT)),
    }
}

/// Tiles for a gradient by the weight, that which is done soonest in front.
fn soonest_first(geometry: &Geometry, mut tilings: Vec<Named<Tiling>>) -> Vec<Named<Tiling>> {
    let seconds = |tiling: Tiling| LongSums::of(&tiling.seen(geometry)).estimate(tiling).seconds;
    tilings.sort_by(|(_, a), (_, b)| seconds(*a).total_cmp(&seconds(*b)));
    tilings
}

const SQUARE_NAME: &str = "cooperative 128x128";
const LOW_NAME: &str = "cooperative 96x128";

/// Tiles on matrix units that are enough, since workgroups share the sums of fewer than keep a GPU busy.
const ENOUGH_ON_UNITS: usize = 64;

const MIDDLE: Named<[u32; 2]> = ("cooperative 128x64", [128, 64]);
const SMALL: Named<[u32; 2]> = ("cooperative 64x64", [64, 64]);

/// Rows and columns of tiles on matrix units, the best first and the smallest last.
const SIZES_ON_UNITS: &[Named<[u32; 2]>] =
    &[(SQUARE_NAME, [128, 128]), (LOW_NAME, [96, 128]), MIDDLE, SMALL];

/// Of tiles for short sums.
const SIZES_IN_SHORT_STEPS: &[Named<[u32; 2]>] =
    &[("cooperative 128x128 short", [128, 128]), ("cooperative 128x64 short", [128, 64])];

/// Of tiles by the weight, whose rows are most often a multiple of 192.
const SIZES_BY_WEIGHT: &[Named<[u32; 2]>] = &[
    ("cooperative 256x128", [256, 128]),
    ("cooperative 192x128", [192, 128]),
    ("cooperative 192x64", [192, 64]),
    (SQUARE_NAME, [128, 128]),
    MIDDLE,
    SMALL,
];

/// Tiles on matrix units for windows all of whose taps of a row find what they read in one tile, for this
/// convolution or, if `data`, for the one that its gradient by the input is; and whether they are preferred.
fn windows(gpu: &Gpu, geometry: &Geometry, data: bool) -> (Vec<Named<Tiling>>, bool) {
    const NARROW: &[Window] = &[("cooperative window 256x64", [256, 64], [64, 32], 32), SMALL];
    const WIDE: &[Window] = &[("cooperative window 128x128", [128, 128], [64, 64], 16), SMALL];
    /// Where a workgroup has little memory.
    const SMALL: Window = ("cooperative window 64x64", [64, 64], [32, 32], 32);
    /// Rows and columns, those that a subgroup does, and terms of a tap at a time.
    type Window = (&'static str, [u32; 2], [u32; 2], u32);

    let units = gpu.matrix_units(true).filter(|units| units.wide_loads);
    let Geometry { x, y, weight, dtype, .. } = if data { geometry.turned() } else { *geometry };
    let fits = geometry.keeps_size() && weight.h > 1 && dtype.is_half();
    let Some(units) = units.filter(|_| fits && x.c.is_multiple_of(32) && y.c.is_multiple_of(8))
    else {
        return (Vec::new(), false);
    };
    // By the input, the weight is read in pieces of a tap's terms, which 16 would make too short.
    let sizes = if y.c <= 64 || data { NARROW } else { WIDE };
    let tile = |&(name, size, part, depth): &Window| {
        let (span, memory) = (weight.h as u32, gpu.workgroup_memory());
        let tile = Cooperative::of_windows(units, size, part, depth, span, memory)?;
        Some((name, Tiling::Cooperative(tile)))
    };
    let tiles: Vec<_> = sizes.iter().filter_map(tile).collect();
    // As found on an H200: where there are few gaps, and workgroups enough although they share no sums.
    let preferred = tiles.first().is_some_and(|(_, tiling)| {
        let few_gaps = 8 * tiling.gap() <= y.w + 1;
        few_gaps && tiling.count_of(y) >= PROCESSORS && (y.c <= 64 || !data)
    });
    (tiles, preferred)
}

/// Those of the tiles on matrix units that there are.
fn on_units(
    sizes: &[Named<[u32; 2]>],
    tile: impl Fn([u32; 2]) -> Option<Cooperative>,
) -> Vec<Named<Tiling>> {
    let tile = |&(name, size)| Some((name, Tiling::Cooperative(tile(size)?)));
    sizes.iter().filter_map(tile).collect()
}

/// Tilings that split f32 for units that have no f32. Whether they pay, `--tune` finds out.
fn split(gpu: &Gpu, dtype: Dtype) -> Vec<Named<Tiling>> {
    let units = gpu.matrix_units(true).filter(|units| units.wide_loads && gpu.has_f16());
    let Some(units) = units else { return Vec::new() };
    if dtype.is_half() || gpu.matrix_units(false).is_some() {
        return Vec::new();
    }
    const SIZES: &[Named<[u32; 2]>] =
        &[("split 128x128", [128, 128]), ("split 128x64", [128, 64]), ("split 64x64", [64, 64])];
    on_units(SIZES, |size| Cooperative::new(units, Numbers::Split, size, gpu.workgroup_memory()))
}

/// Tilings for a product, the best for this adapter first, with those in registers `alone`.
fn tilings(
    gpu: &Gpu,
    product: Product,
    geometry: &Geometry,
    alone: Vec<Named<Tiling>>,
) -> Vec<Named<Tiling>> {
    let fits = |(_, tiling): &Named<Tiling>| tiling.memory() <= gpu.workgroup_memory();
    let tiled = [TILED_128, TILED_128_64, TILED_64].into_iter().filter(fits).collect();
    let tiled = product.order(tiled, 2 * BUSY);
    let (matrices, split) = (cooperative(gpu, product, geometry), split(gpu, geometry.dtype));
    match gpu.class() {
        AdapterClass::Software => [alone, tiled, matrices, split].concat(),
        _ => [matrices, tiled, alone, split].concat(),
    }
}

/// Kernels for a product of `rows` × `columns`, with Winograd's algorithm where it applies.
fn methods(
    gpu: &Gpu,
    product: Product,
    geometry: &Geometry,
    winograd: Option<Winograd>,
    (windows, preferred): (Vec<Named<Tiling>>, bool),
) -> Vec<Named<Method>> {
    let direct = tilings(gpu, product, geometry, alone(gpu, product, geometry));
    let windows_first = preferred && gpu.class() != AdapterClass::Software;
    let direct = if windows_first { [windows, direct] } else { [direct, windows] }.concat();
    let direct = direct.into_iter().map(|(name, tiling)| (name, Method::Direct(tiling)));
    let Some(winograd) = winograd.filter(|winograd| winograd.fits(gpu)) else {
        return direct.collect();
    };
    const SHARED: Lanes = [
        &[("winograd lanes 32x2", lanes(32, 2)), ("winograd lanes 16x2", lanes(16, 2))],
        &[("winograd texels 32x2", texels(lanes(32, 2)))],
    ];
    const REGISTERS: Lanes = [
        &[("winograd registers 16x2", registers(16, 2))],
        &[("winograd texel registers 16x2", texels(registers(16, 2)))],
    ];
    const TILED: &[Named<Tiling>] = &[
        ("winograd tiled 128x64", Tiling::Tiled { rows: 128, columns: 64 }),
        ("winograd tiled 64x64", Tiling::Tiled { rows: 64, columns: 64 }),
        ("winograd tiled 128x128", Tiling::Tiled { rows: 128, columns: 128 }),
    ];
    let alone = in_order(gpu, if lanes_share_loads(gpu) { SHARED } else { REGISTERS }, true);
    let all = match gpu.class() {
        AdapterClass::Software => [&alone, TILED].concat(),
        _ => [TILED, &alone].concat(),
    };
    let all = all.into_iter().map(|(name, tiling)| (name, Method::Winograd(tiling)));
    // As `--tune` found it on software adapters and on an H200: the transforms of patches and weight must
    // be small beside the products, and these be saved, not just padding, which other kernels pass over.
    let [fewer, more] = winograd.channels();
    let pays = match gpu.class() {
        // What texels save is loads, of which the transforms have many, and each only once.
        AdapterClass::Software if gpu.report().prefers_texels() => {
            fewer >= 128 && winograd.saving() > 2.1
        }
        AdapterClass::Software => {
            fewer >= 64 && 4 * winograd.all_patches() >= more && winograd.saving() > 1.5
        }
        _ if geometry.dtype.is_half() && gpu.matrix_units(true).is_some() => false,
        _ => fewer >= 128 && geometry.flops() >= 2e9 && winograd.saving() > 1.25,
    };
    match pays {
        true => all.chain(direct).collect(),
        false => direct.chain(all).collect(),
    }
}

/// How to do the forward pass.
pub fn forward(gpu: &Gpu, geometry: &Geometry) -> Method {
    let Geometry { x, y, weight, .. } = *geometry;
    let terms = weight.n * weight.h * x.c4() * 4;
    let (rows, pairs) = (y.pixels(), geometry.has_pairs());
    let product = Product { rows, columns: y.c, count: 1, terms, parts: 1, pairs };
    let windows = windows(gpu, geometry, false);
    let methods = methods(gpu, product, geometry, Winograd::forward(geometry), windows);
    gpu.choose_kernel(PASSES[0], geometry.sizes(), &methods)
}

/// How to do the backward pass by the input, whose largest class of pixels has `rows`.
pub fn backward_data(gpu: &Gpu, geometry: &Geometry, rows: usize) -> Method {
    let Geometry { x, y, weight, conv, .. } = *geometry;
    let [stride_h, stride_w] = conv.stride;
    let terms = weight.n.div_ceil(stride_h) * weight.h.div_ceil(stride_w) * y.c4() * 4;
    let count = stride_h * stride_w;
    let product = Product { rows, columns: x.c, count, terms, parts: 1, pairs: false };
    let windows = windows(gpu, geometry, true);
    let methods = methods(gpu, product, geometry, Winograd::backward_data(geometry), windows);
    gpu.choose_kernel(PASSES[1], geometry.sizes(), &methods)
}

/// How to do the backward pass by a weight of so many `quads` of input channels at all taps.
pub fn backward_weight(gpu: &Gpu, geometry: &Geometry, quads: usize) -> Tiling {
    let (pairs, parts) = (geometry.has_pairs(), most_parts(geometry));
    let (rows, columns, terms) = (quads * 4, geometry.y.c, geometry.y.pixels());
    let product = Product { rows, columns, count: 1, terms, parts, pairs };
    let tilings = tilings(gpu, product, geometry, alone_by_weight(gpu, product));
    gpu.choose_kernel(PASSES[2], geometry.sizes(), &tilings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::MatrixUnits;

    #[test]
    fn large_products_get_large_tiles_and_small_ones_many() {
        let first = |rows, columns, parts| {
            let product = Product { rows, columns, count: 1, terms: 576, parts, pairs: false };
            product.order(vec![TILED_128, TILED_128_64, TILED_64], 2 * BUSY)[0].0
        };
        // Forward: layer1 at 224 px, batch 64, and layer4 at 64 px, batch 16.
        assert_eq!(first(64 * 56 * 56, 64, 1), "tiled 128x64");
        assert_eq!(first(64, 512, 1), "tiled 64x64");
        // By the weight of layer3, whose sums are over many pixels or few.
        assert_eq!(first(9 * 256, 256, 64 * 14 * 14 / 64), "tiled 128x128");
        assert_eq!(first(9 * 256, 256, 16 * 4 * 4 / 64), "tiled 64x64");
        // Of a shortcut, which would fill half of a large tile.
        assert_eq!(first(64, 128, 64 * 28 * 28 / 64), "tiled 64x64");
        let none = Product { rows: 64, columns: 64, count: 1, terms: 64, parts: 1, pairs: false };
        let none = none.order(Vec::new(), 64);
        assert!(none.is_empty());
    }

    #[test]
    fn a_few_deep_tiles_share_their_sums() {
        let parts = |tiles, quads| TILED_64.1.share(tiles, quads).parts;
        // Enough tiles, or sums too short to be shared.
        assert_eq!(parts(BUSY, 1152), 1);
        assert_eq!(parts(8, 40), 1);
        // layer4 at 64 px, batch 16: as many as keep a GPU busy, in whole rounds.
        assert_eq!(parts(8, 1152), 29);
        assert_eq!(registers(16, 4).share(8, 1152).parts, 1);
    }

    const UNITS: MatrixUnits = MatrixUnits { side: 16, lanes: 32, wide_loads: true };

    fn octets(size: [u32; 2]) -> Option<Cooperative> {
        Cooperative::new(UNITS, Numbers::Octets, size, 48 << 10)
    }

    #[test]
    fn products_that_fill_no_tile_on_units_get_the_smallest() {
        let first = |rows, columns, terms| {
            let tiles = on_units(SIZES_ON_UNITS, octets);
            let short = on_units(SIZES_IN_SHORT_STEPS, |size| {
                Cooperative::in_short_steps(UNITS, Numbers::Octets, size, 48 << 10)
            });
            let product = Product { rows, columns, count: 1, terms, parts: 1, pairs: false };
            product.with_short_steps(product.order_on_units(tiles), short)[0].0
        };
        // Forward: layer1 and layer2 at 224 px, and layer4 at 64 px with a small batch.
        assert_eq!(first(64 * 56 * 56, 64, 576), "cooperative 128x64");
        assert_eq!(first(64 * 28 * 28, 128, 1152), "cooperative 128x128");
        assert_eq!(first(64, 512, 4608), "cooperative 64x64");
        // layer3 and layer4, of whose large tiles the last round would have few.
        assert_eq!(first(64 * 14 * 14, 256, 2304), "cooperative 96x128");
        assert_eq!(first(64 * 7 * 7, 512, 4608), "cooperative 96x128");
        assert_eq!(first(256 * 14 * 14, 256, 2304), "cooperative 128x128");
        // The stem and shortcuts, with short sums.
        assert_eq!(first(256 * 112 * 112, 64, 196), "cooperative 128x64 short");
        assert_eq!(first(256 * 28 * 28, 128, 64), "cooperative 128x128 short");
        assert_eq!(first(256 * 14 * 14, 256, 128), "cooperative 128x128 short");
        assert_eq!(first(256 * 7 * 7, 512, 256), "cooperative 128x128");
    }

    #[test]
    fn by_the_weight_tiles_leave_little_of_a_round_unused() {
        let first = |images, size, [c_in, c_out]: [u32; 2], window, stride| {
            let padding = window / 2;
            let sizes = [
                images, size, size, c_in, window, window, c_out, stride, stride, padding, padding,
                1,
            ];
            let geometry = Geometry::of_sizes(sizes).unwrap();
            let tiles = on_units(SIZES_BY_WEIGHT, octets);
            let (name, tiling) = soonest_first(&geometry, tiles)[0];
            (name, LongSums::of(&geometry).estimate(tiling).parts)
        };
        // As an H200 has them soonest: layers at 224 px, batch 64 and 256.
        assert_eq!(first(64, 56, [64, 64], 3, 1), ("cooperative 192x64", 88));
        assert_eq!(first(64, 56, [64, 128], 3, 2), ("cooperative 192x128", 44));
        assert_eq!(first(64, 28, [128, 128], 3, 1), ("cooperative 192x128", 22));
        assert_eq!(first(64, 14, [256, 256], 3, 1), ("cooperative 256x128", 7));
        assert_eq!(first(256, 14, [256, 256], 3, 1), ("cooperative 256x128", 7));
        assert_eq!(first(256, 28, [128, 256], 3, 2), ("cooperative 256x128", 13));
        assert_eq!(first(256, 14, [256, 512], 3, 2), ("cooperative 256x128", 7));
        // Of shortcuts, which would fill half of a large tile.
        assert_eq!(first(64, 56, [64, 128], 1, 2).0, "cooperative 64x64");
    }
}
