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
    let parts = parts_with_shadow(gpu, op, arenas, None)?;
    Ok(parts.into_iter().map(|(part, _)| part).collect())
}

/// [`parts`], and those of a copy in f16 of the same numbers, if there is one.
///
/// # Errors
/// As [`parts`], and if the copy is not half as long.
pub(super) fn parts_with_shadow<const N: usize>(
    gpu: &Gpu,
    op: &'static str,
    arenas: [&Slice; N],
    shadow: Option<&Slice>,
) -> Result<Vec<([Slice; N], Option<Slice>)>> {
    let bytes = arenas[0].bytes;
    if let Some(shadow) = shadow
        && 2 * shadow.bytes != bytes
    {
        let what = format!("a copy in f16 of {bytes} bytes has {} bytes", shadow.bytes);
        return Err(Error::shape(op, what));
    }
    if !bytes.is_multiple_of(16) || arenas.iter().any(|arena| arena.bytes != bytes) {
        let lengths = arenas.map(|arena| arena.bytes);
        let what = format!("arenas of {lengths:?} bytes must be equally long multiples of 16");
        return Err(Error::shape(op, what));
    }
    let part = |(offset, length)| {
        let shadow = shadow.map(|shadow| shadow.part(offset / 2, length / 2));
        (arenas.map(|arena| arena.part(offset, length)), shadow)
    };
    Ok(ranges(bytes, gpu.binding_limit()).map(part).collect())
}

/// Threads that go over a part of an arena, and whether each does eight numbers, else four: what kernels that
/// include `shaders/words.wgsl` are told as `WORDS`.
pub(super) fn threads(gpu: &Gpu, part: &Slice) -> (usize, bool) {
    let words = gpu.prefers_words() && part.bytes.is_multiple_of(32);
    (part.bytes as usize / if words { 32 } else { 16 }, words)
}

/// Offset and length of pieces of at most `limit` bytes, cut at multiples of 512: those of a copy
/// half as long are multiples of 256, too.
fn ranges(bytes: u64, limit: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = limit & !511;
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
        assert_eq!(ranges(1040, 1000).count(), 3);
    }
}
