//! The tiles that kernels do products in, and what they read.

use std::cell::OnceCell;

use super::geometry::Geometry;
use super::sharing::Sharing;
use crate::gpu::{Gpu, Kernel, MatrixUnits, Shader, Slice};
use crate::tensor::{Shape, Tensor};

/// The tile of a matrix product that one workgroup computes.
#[derive(Clone, Copy)]
pub enum Tiling {
    /// Eight lanes with registers alone: rows × vec4 columns a lane, loads shared by `lanes` lanes, of the
    /// operands themselves or of copies as texels.
    Lanes { lanes: u32, rows: u32, columns: u32, texels: bool },
    /// Workgroup memory: rows × columns of a workgroup.
    Tiled { rows: u32, columns: u32 },
    /// Matrix units, from tiles in workgroup memory.
    Cooperative(Cooperative),
}

/// A tile that is done on matrix units.
#[derive(Clone, Copy)]
pub struct Cooperative {
    units: MatrixUnits,
    /// What is multiplied.
    numbers: Numbers,
    /// Rows and columns of a workgroup.
    rows: u32,
    columns: u32,
    /// Rows and columns that a subgroup does: the more, the less is read from workgroup memory, and the
    /// fewer subgroups fit.
    part: [u32; 2],
    /// Terms of a step, or of one tap of it.
    depth: u32,
    /// Taps of a step, which find what they read in one tile: a row of windows that keep an image's size,
    /// or 1.
    span: u32,
}

/// Numbers that matrix units multiply.
#[derive(Clone, Copy, PartialEq)]
pub enum Numbers {
    Single,
    /// f32 on units for f16, each number being two of theirs.
    Split,
    Half,
    /// f16 that are read eight at a time, since there are multiples of eight channels.
    Octets,
    /// f16 that are read eight at a time, two pixels of four channels: [`Geometry::paired`].
    Pairs,
}

impl Cooperative {
    /// The tile with the longest steps that `memory` bytes of a workgroup hold; `None` if none do.
    pub fn new(
        units: MatrixUnits,
        numbers: Numbers,
        [rows, columns]: [u32; 2],
        memory: u32,
    ) -> Option<Self> {
        let longest = if columns == 128 && rows <= 128 || rows == columns { 64 } else { 32 };
        let depths: &[u32] = if longest == 64 { &[64, 32] } else { &[32] };
        Self::with_steps_of(depths, units, numbers, [rows, columns], memory)
    }

    /// The tile with steps as short as they can be, so that more workgroups fit beside each other.
    pub fn in_short_steps(
        units: MatrixUnits,
        numbers: Numbers,
        size: [u32; 2],
        memory: u32,
    ) -> Option<Self> {
        Self::with_steps_of(&[16], units, numbers, size, memory)
    }

    /// The tile with steps of the first of these numbers of terms that `memory` bytes hold.
    fn with_steps_of(
        depths: &[u32],
        units: MatrixUnits,
        numbers: Numbers,
        [rows, columns]: [u32; 2],
        memory: u32,
    ) -> Option<Self> {
        // As an H200 has them fastest.
        let part = match [rows, columns] {
            [256, _] => [64, 64],
            [192, _] => [96, 32],
            [128, _] => [64, 32],
            [96, _] => [48, 32],
            _ => [32, 32],
        };
        let tile = |depth| Self { units, numbers, rows, columns, part, depth, span: 1 };
        // Each lane has a term of a step to stage at least.
        let fits =
            |it: &Self| it.depth <= it.threads() && it.is_staged_evenly() && it.memory() <= memory;
        depths.iter().copied().map(tile).find(fits)
    }

    /// The tile for windows whose rows have `span` taps, subgroups doing so much of it, with so many terms of
    /// a tap; if `memory` bytes of a workgroup hold it.
    pub fn of_windows(
        units: MatrixUnits,
        [rows, columns]: [u32; 2],
        part: [u32; 2],
        depth: u32,
        span: u32,
        memory: u32,
    ) -> Option<Self> {
        let tile = Self { units, numbers: Numbers::Octets, rows, columns, part, depth, span };
        (tile.is_staged_evenly() && tile.memory() <= memory).then_some(tile)
    }

    /// Whether each lane stages as much of either side's step as every other.
    fn is_staged_evenly(self) -> bool {
        let packet = if let Numbers::Octets | Numbers::Pairs = self.numbers { 8 } else { 4 };
        let sides = [self.rows, self.columns * self.span];
        let packets = sides.map(|side| side * self.depth / packet);
        packets.iter().all(|packets| packets.is_multiple_of(self.threads()))
    }

    fn threads(self) -> u32 {
        let [rows, columns] = self.part;
        self.units.lanes * (self.rows / rows) * (self.columns / columns)
    }

    /// Bytes of workgroup memory of the most demanding pass.
    fn memory(self) -> u32 {
        self.memory_of(|side, depth| (side * (depth + 8)).max(depth * (side + 8)))
    }

    /// That by the weight, where both tiles keep the numbers of a term together.
    fn memory_by_weight(self) -> u32 {
        self.memory_of(|side, depth| depth * (side + 8))
    }

    /// Bytes of workgroup memory: the two tiles of so many numbers and the band that the sums pass through, with
    /// gaps, shares of the statistics, and what finds the scales of split numbers. Two halves take what a number
    /// of f32 does.
    fn memory_of(self, tile: impl Fn(u32, u32) -> u32) -> u32 {
        let Self { units, numbers, rows, columns, depth, span, .. } = self;
        let number = if let Numbers::Single | Numbers::Split = numbers { 4 } else { 2 };
        let tiles = (tile(rows + span - 1, depth) + tile(columns, span * depth)) * number;
        let peaks = if numbers == Numbers::Split { 8 * self.threads() } else { 0 };
        let [part_rows, part_columns] = self.part;
        let band_rows = rows / part_rows * units.side;
        let band_columns = columns / part_columns * units.side.max(units.lanes * 4 / units.side);
        let band = band_rows * (band_columns + 4) + 4 * band_columns;
        tiles + band * 4 + peaks
    }

    fn kernel(self, shader: &'static Shader) -> Kernel {
        let Self { units, numbers, rows, columns, depth, span, .. } = self;
        let [part_rows, part_columns] = self.part;
        let kernel = Kernel::new(shader).with("SIDE", units.side).with("LANES", units.lanes);
        let kernel = kernel.with("BM", rows).with("BN", columns).with("DEPTH", depth);
        let kernel = kernel.with("SM", part_rows).with("SN", part_columns);
        let kernel = if span > 1 { kernel.with("SPAN", span) } else { kernel };
        match numbers {
            Numbers::Split => kernel.with("PARTS", 2),
            Numbers::Octets | Numbers::Pairs => kernel.with("OCTETS", 1),
            _ if units.wide_loads => kernel,
            _ => kernel.with("WIDE", 0),
        }
    }
}

/// The shaders of a pass, by how their tiles are done.
pub struct Shaders {
    pub lanes: &'static Shader,
    pub tiled: &'static Shader,
    pub cooperative: Option<&'static Shader>,
    /// The same where several taps find what they read in one tile.
    pub window: Option<&'static Shader>,
}

impl Tiling {
    /// Bytes of workgroup memory that the most demanding pass takes: sixteen terms of each row and column, and a
    /// gap after those of a column.
    pub fn memory(self) -> u32 {
        match self {
            Self::Lanes { .. } => 0,
            Self::Tiled { rows, columns } => (rows * 16 + columns * 20) * 4,
            Self::Cooperative(tile) => tile.memory(),
        }
    }

    /// The kernel for this tile, of the shaders of a pass. A workgroup does one tile.
    pub fn kernel(self, shaders: &Shaders) -> Kernel {
        match self {
            Self::Lanes { lanes, rows, columns, texels } => {
                let kernel = Kernel::new(shaders.lanes).with("LANES", lanes);
                let kernel = kernel.with("ROWS", rows).with("COLS", columns);
                if texels { kernel.with("TEXELS", 1) } else { kernel }
            }
            Self::Tiled { rows, columns } => {
                Kernel::new(shaders.tiled).with("BM", rows).with("BN", columns)
            }
            Self::Cooperative(tile) => {
                let shader = if tile.span > 1 { shaders.window } else { shaders.cooperative };
                tile.kernel(shader.expect("offered where there is one"))
            }
        }
    }

    /// [`Tiling::kernel`] for a sum over input channels, or for rows that are these at all taps: a first
    /// layer's images have fewer than the four that a tensor stores.
    pub fn kernel_for(self, shaders: &Shaders, geometry: &Geometry) -> Kernel {
        let kernel = self.kernel(shaders);
        match self {
            Self::Lanes { .. } | Self::Tiled { .. } if geometry.x.c < 4 => {
                kernel.with("DEPTH", geometry.x.c as u32)
            }
            _ if self.is_paired() => {
                kernel.with("TAPS", geometry.weight.h as u32).with("LEAD", geometry.lead() as u32)
            }
            _ => kernel,
        }
    }

    /// The kernel made to store rows of so many f32 eight at a time, where that takes less time.
    pub fn storing(self, gpu: &Gpu, channels: usize, kernel: Kernel) -> Kernel {
        let words = channels.div_ceil(4).is_multiple_of(2) && gpu.prefers_words();
        match self {
            Self::Lanes { columns: 2.., .. } if words => kernel.with("WORDS", 1),
            _ => kernel,
        }
    }

    /// An operand, of f16 if `half`, as this tile's kernel reads it.
    pub fn operand(self, gpu: &Gpu, operand: &Slice, half: bool) -> Slice {
        if self.reads_texels() { gpu.texels(operand, half) } else { operand.clone() }
    }

    fn reads_texels(self) -> bool {
        matches!(self, Self::Lanes { texels: true, .. })
    }

    /// The convolution as this tile's kernel goes through it.
    pub fn seen(self, geometry: &Geometry) -> Geometry {
        if self.is_paired() { geometry.paired() } else { *geometry }
    }

    /// Whether it is done on matrix units.
    pub fn is_on_units(self) -> bool {
        matches!(self, Self::Cooperative(_))
    }

    /// Taps that find what they read in one tile.
    fn span(self) -> usize {
        if let Self::Cooperative(tile) = self { tile.span as usize } else { 1 }
    }

    /// Whether these are several: the tile's rows are places, of which there are more than pixels.
    pub fn has_places(self) -> bool {
        self.span() > 1
    }

    /// Places after each row of an image that are no pixels: as many as its padding.
    pub fn gap(self) -> usize {
        self.span() / 2
    }

    /// Workgroups by the weight that one of an H200's processors holds: it has 51,200 bytes for them, and takes
    /// 1,024 for each.
    pub fn at_a_time(self) -> usize {
        match self {
            Self::Cooperative(tile) if tile.memory_by_weight() > 24 << 10 => 1,
            _ => 2,
        }
    }

    /// Terms of a step.
    pub fn depth(self) -> usize {
        if let Self::Cooperative(tile) = self { tile.depth as usize } else { 16 }
    }

    /// How fast it is done on an H200 where nothing is left over, the tile of 256 × 128 being 1.
    pub fn speed(self) -> f64 {
        match [self.rows(), self.columns()] {
            [256, 128] => 1.0,
            [192, 128] => 0.855,
            [192, 64] => 0.75,
            [128, _] => 0.65,
            _ => 0.45,
        }
    }

    /// Whether two pixels are read as one.
    fn is_paired(self) -> bool {
        matches!(self, Self::Cooperative(Cooperative { numbers: Numbers::Pairs, .. }))
    }

    /// Whether numbers are split, for which the kernel binds what [`super::peaks`] found, at the end.
    pub fn is_split(self) -> bool {
        matches!(self, Self::Cooperative(Cooperative { numbers: Numbers::Split, .. }))
    }

    /// Rows of a tile, of which the last few of places lack a tap.
    pub fn rows(self) -> usize {
        match self {
            Self::Lanes { rows, .. } | Self::Tiled { rows, .. } => rows as usize,
            Self::Cooperative(tile) => (tile.rows - tile.span + 1) as usize,
        }
    }

    /// Columns of a tile.
    pub fn columns(self) -> usize {
        let columns = match self {
            Self::Lanes { columns, .. } => 32 * columns,
            Self::Tiled { columns, .. } | Self::Cooperative(Cooperative { columns, .. }) => columns,
        };
        columns as usize
    }

    /// How to share the sums of so many tiles, over `quads` groups of four terms.
    pub fn share(self, tiles: usize, quads: usize) -> Sharing {
        /// Groups of four terms of a part, at least.
        const LEAST: usize = 32;
        // Parts are whole numbers of a kernel's rounds, each of so many groups.
        let (round, most) = match self {
            Self::Lanes { .. } => (8, 1),
            Self::Tiled { .. } => (8, quads / LEAST),
            _ if self.has_places() => (1, 1),
            Self::Cooperative(tile) => (tile.depth as usize / 4, quads / LEAST),
        };
        Sharing::new(tiles, quads, round, most)
    }

    /// Tiles that cover images of this shape.
    pub fn count_of(self, images: Shape) -> usize {
        self.count(images.n * images.h * (images.w + self.gap()), images.c)
    }

    /// Tiles that cover a product of `rows` × `columns`.
    pub fn count(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.rows()) * columns.div_ceil(self.columns())
    }
}

/// What passes read: a tensor and, once a kernel has asked for them, its copy as texels.
pub struct Operand {
    tensor: Tensor,
    texels: OnceCell<Slice>,
}

impl Operand {
    /// A tensor that keeps its numbers for as long as this lives.
    pub fn new(tensor: &Tensor) -> Self {
        Self { tensor: tensor.clone(), texels: OnceCell::new() }
    }

    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The memory that a tile's kernel binds.
    pub fn read_by(&self, tiling: Tiling, gpu: &Gpu) -> &Slice {
        let (memory, half) = (self.tensor.memory(), self.tensor.dtype().is_half());
        match tiling.reads_texels() {
            true => self.texels.get_or_init(|| gpu.texels(memory, half)),
            false => memory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_on_units_are_as_long_as_memory_allows() {
        let units = MatrixUnits { side: 16, lanes: 32, wide_loads: true };
        let depth = |size, memory| {
            Cooperative::new(units, Numbers::Octets, size, memory).map(|tile| tile.depth)
        };
        assert_eq!(depth([128, 128], 48 << 10), Some(64));
        assert_eq!(depth([128, 128], 32 << 10), Some(32));
        assert_eq!(depth([128, 128], 16 << 10), None);
        assert_eq!(depth([128, 64], 48 << 10), Some(32));
        // Steps of 32 would leave half of the lanes without rows of 96 to stage.
        assert_eq!(depth([96, 128], 48 << 10), Some(64));
        assert_eq!(depth([96, 128], 32 << 10), None);
        // Each lane has a term of a step to stage at least.
        let units = MatrixUnits { side: 8, lanes: 8, ..units };
        let tile = Cooperative::new(units, Numbers::Octets, [64, 64], 48 << 10).unwrap();
        assert_eq!((tile.threads(), tile.depth), (32, 32));
    }
}
