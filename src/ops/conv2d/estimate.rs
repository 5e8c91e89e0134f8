//! About how long a gradient by the weight takes on matrix units, to choose its tile and the parts of its sums
//! by. Of these sums there are few, and each is over all pixels of a batch: workgroups share those of a tile, as
//! many of them as fill a GPU for whole rounds, since a round takes as long however few its workgroups are. The
//! speeds are an H200's (benches/results/README.md).

use super::geometry::Geometry;
use super::tiling::Tiling;

/// Processors of a GPU: an H200's, since adapters do not tell.
pub const PROCESSORS: usize = 132;

/// A product with long sums.
#[derive(Clone, Copy)]
pub struct LongSums {
    rows: usize,
    columns: usize,
    /// Terms of each sum.
    terms: usize,
    /// Parts that each sum can be done in, at most.
    most: usize,
}

/// What is expected of one way to do it.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    /// Parts of each sum.
    pub parts: usize,
    /// Time on an H200.
    pub seconds: f64,
}

impl LongSums {
    /// Those of the gradient by the weight.
    pub fn of(geometry: &Geometry) -> Self {
        let Geometry { x, weight, y, .. } = geometry;
        let rows = weight.n * weight.h * x.c4() * 4;
        Self { rows, columns: y.c, terms: y.pixels(), most: most_parts(geometry) }
    }

    /// The parts of the sums with which this tile is done soonest.
    pub fn estimate(self, tiling: Tiling) -> Estimate {
        const ROUNDS: usize = 4;
        let tiles = tiling.count(self.rows, self.columns);
        let parts = |rounds| rounds * PROCESSORS * tiling.at_a_time() / tiles;
        let all = (1..=ROUNDS).map(|rounds| self.in_parts(tiling, tiles, parts(rounds)));
        all.min_by(|a, b| a.seconds.total_cmp(&b.seconds)).expect("several rounds")
    }

    fn in_parts(self, tiling: Tiling, tiles: usize, parts: usize) -> Estimate {
        /// Multiplications and additions a second of a processor, by the fastest tile.
        const SPEED: f64 = 2.1e12;
        /// Bytes a second.
        const BANDWIDTH: f64 = 3e12;
        /// Of one more kernel, and of what it waits for with each part.
        const SECOND_KERNEL: f64 = 2e-6;
        const NEXT_PART: f64 = 2e-8;

        let Self { rows, columns, terms, most } = self;
        let parts = parts.clamp(1, most);
        let rounds = (tiles * parts).div_ceil(PROCESSORS * tiling.at_a_time());
        // Of each processor.
        let sums = rounds * tiling.at_a_time() * tiling.rows() * tiling.columns();
        // While the first step's numbers are loaded, nothing is multiplied.
        let terms = terms.div_ceil(parts).next_multiple_of(tiling.depth()) + tiling.depth();
        let multiplying = 2.0 * (sums * terms) as f64 / (SPEED * tiling.speed());
        let moving = |numbers: usize| (numbers * size_of::<f32>()) as f64 / BANDWIDTH;
        let writing = moving(sums * PROCESSORS);
        let adding = match parts {
            1 => 0.0,
            _ => SECOND_KERNEL + NEXT_PART * parts as f64 + moving(parts * rows * columns),
        };
        Estimate { parts, seconds: multiplying + writing + adding }
    }
}

/// Parts that sums over all pixels are done in at most, each of whole rows of images: as long as a part still
/// sums a few dozen pixels.
pub fn most_parts(geometry: &Geometry) -> usize {
    let y = geometry.y;
    (y.pixels() / 64).clamp(1, y.n * y.h)
}
