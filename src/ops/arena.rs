//! Arenas: flat memory of many parameters, which the updates run over all at once.

use crate::gpu::{Gpu, Slice};
use crate::{Error, Result};

/// Splits arenas of equal length at the same places, so that every part can be bound.
///
/// # Errors
/// [`Error::Shape`] for operation `op` if the lengths differ or are no multiple of 16 bytes.
pub(super) fn parts<const N: usize>(
    gpu: &Gpu,
    op: &'static str,
    arenas: [&Slice; N],
) -> Result<Vec<[Slice; N]>> {
    let bytes = arenas[0].bytes;
    if !bytes.is_multiple_of(16) || arenas.iter().any(|arena| arena.bytes != bytes) {
        let lengths = arenas.map(|arena| arena.bytes);
        let what = format!("arenas of {lengths:?} bytes must be equally long multiples of 16");
        return Err(Error::shape(op, what));
    }
    let part = |(offset, length)| arenas.map(|arena| arena.part(offset, length));
    Ok(ranges(bytes, gpu.binding_limit()).map(part).collect())
}

/// Offset and length of pieces of at most `limit` bytes, cut at multiples of 256.
fn ranges(bytes: u64, limit: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = limit & !255;
    (0..bytes.div_ceil(step)).map(move |piece| (piece * step, step.min(bytes - piece * step)))
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn pieces_cover_everything_once_and_fit_the_limit() {
        assert_eq!(ranges(0, 512).count(), 0);
        assert_eq!(ranges(512, 512).collect::<Vec<_>>(), [(0, 512)]);
        assert_eq!(ranges(1040, 700).collect::<Vec<_>>(), [(0, 512), (512, 512), (1024, 16)]);
    }
}
