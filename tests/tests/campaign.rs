//! A handful of seeds of the campaign. Hundreds: `cargo run --release -p tests --bin campaign -- --runs 100`.

use anyhow::Result;
use tests::campaign::drive::{References, drive};
use tests::campaign::plan::{Load, Plan};
use tests::matrix;

/// Seeds 40 to 47 aim at computing and cut in all four solvers; the others follow with the binary.
#[test]
fn a_handful_of_seeds_ends_with_the_same_bits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let own = folder.path().join("own.mtx");
    matrix::write_own(&own, 30)?;
    let load = Load {
        scale: 0.5,
        matrices: vec![own],
    };
    let references = References::default();
    for seed in 40..48 {
        let plan = Plan::draw(seed, &load);
        drive(&plan, &references).map_err(|error| error.context(format!("seed {seed}: {plan}")))?;
    }
    Ok(())
}
