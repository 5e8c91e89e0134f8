//! Finding the clip art that comes with the program.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The bundled data set's place in the source tree.
const CLIPART: &str = "assets/clipart";

/// The folder of the bundled clip art: `assets/clipart` under the current directory, under a folder
/// above the executable, or under the source tree the program was built from.
///
/// # Errors
/// [`Error::Data`] when none of them has it.
pub fn demo_root() -> Result<PathBuf> {
    let executable = std::env::current_exe().unwrap_or_default();
    let places = std::env::current_dir().into_iter();
    let places = places.chain(executable.ancestors().skip(1).map(Path::to_owned));
    let places = places.chain([PathBuf::from(env!("CARGO_MANIFEST_DIR"))]);
    places.map(|place| place.join(CLIPART)).find(|root| root.join("train").is_dir()).ok_or_else(
        || {
            Error::data(
                CLIPART,
                "the bundled images are neither under the current directory, nor beside the program, \
                 nor where it was built; run wgrad from its source tree, or give your own images with \
                 --data DIR",
            )
        },
    )
}
