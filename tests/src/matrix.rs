//! Matrices for `cg`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A finite-element matrix of the collection beside the checkout; none if the collection is not there.
#[must_use]
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data")
        .join(name);
    path.canonicalize().ok()
}

/// Writes a matrix of our own: the five-point operator on a `side` x `side` grid with a diagonal that varies
/// from point to point, so that no two rows are the same. Symmetric, lower triangle, as Matrix Market.
///
/// # Errors
/// When the file can't be written.
pub fn write_own(path: &Path, side: usize) -> Result<()> {
    let rows = side * side;
    let mut entries = String::new();
    let mut count = 0;
    for row in 0..rows {
        let (y, x) = (row / side, row % side);
        let mut add = |column: usize, value: f64| {
            count += 1;
            // Writing to a String can't fail.
            let _ = writeln!(entries, "{} {} {value:e}", row + 1, column + 1);
        };
        if y > 0 {
            add(row - side, -1.0);
        }
        if x > 0 {
            add(row - 1, -1.0);
        }
        #[allow(clippy::cast_precision_loss)] // rows are few
        add(row, 4.0 + (row * 7919 % 1000) as f64 / 1000.0);
    }
    let text = format!(
        "%%MatrixMarket matrix coordinate real symmetric\n{rows} {rows} {count}\n{entries}"
    );
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
