//! Stored files that are not as they were written: found, named, and never used.

use std::fs;

use anyhow::{Context as _, Result};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tests::bed::Bed;
use tests::damage::{Damage, StoppedJob, epoch_folder, last_start};
use tests::solver::Solver;

fn heat() -> Solver {
    Solver::heat(2, 32, 64, 1500)
}

fn undisturbed() -> Result<String> {
    Bed::new()?
        .run(&heat(), "--every off")?
        .expect_code(0)?
        .result()
}

#[test]
fn verify_finds_flipped_bytes_and_lost_ends_in_every_file_of_a_store() -> Result<()> {
    let job = StoppedJob::make(&heat(), 2)?;
    job.bed.on_store("verify", &[])?.expect_code(0)?;
    // Every byte: `cargo run --release -p tests --bin damage`.
    let mut random = ChaCha8Rng::seed_from_u64(5);
    for file in job.files()? {
        // Written when a command or a job needs it, and empty of meaning.
        if file.ends_with("lock") {
            continue;
        }
        let bytes = usize::try_from(fs::metadata(&file)?.len())?;
        let mut damages = Damage::all(bytes, Some(40), &mut random);
        damages.push(Damage::Flip { at: 0, bits: 0x80 });
        damages.push(Damage::Flip {
            at: bytes - 1,
            bits: 1,
        });
        damages.push(Damage::Truncate { to: 0 });
        for damage in damages {
            job.check_detected(&file, damage)?;
        }
    }
    job.bed.on_store("verify", &[])?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_damaged_newest_checkpoint_is_told_marked_and_left_for_the_one_before() -> Result<()> {
    let expected = undisturbed()?;
    let job = StoppedJob::make(&heat(), 2)?;
    let (newest, before) = (job.newest(), job.epochs[0]);
    for file in job.files_of(newest)? {
        let bytes = usize::try_from(fs::metadata(&file)?.len())?;
        let is_image = file.extension().is_some_and(|extension| extension == "img");
        for damage in [
            Damage::Flip {
                at: bytes / 2,
                bits: 4,
            },
            Damage::Truncate { to: bytes / 2 },
            Damage::Truncate { to: 0 },
        ] {
            let outcome = job.restart_damaged(&file, damage)?.expect_code(0)?;
            assert_eq!(
                outcome.result()?,
                expected,
                "{damage:?} of {}",
                file.display()
            );
            assert_eq!(
                last_start(&outcome.events),
                Some(before),
                "{}",
                outcome.story()
            );
            let told = outcome.stderr_text();
            assert!(
                told.contains(&format!("epoch {newest}")),
                "{damage:?} of {}: {told}",
                file.display()
            );
            if is_image {
                let bad: Vec<_> = outcome
                    .events
                    .iter()
                    .filter(|event| event.is("bad"))
                    .collect();
                assert_eq!(bad.len(), 1, "{}", outcome.story());
                assert_eq!(bad[0].epoch(), Some(newest));
                assert!(bad[0].text("reason").len() > 10, "{bad:?}");
            }
        }
    }
    Ok(())
}

/// A job that changes little, so that its checkpoints need files of those before.
fn sparse() -> Solver {
    let mut heat = Solver::heat(2, 64, 1024, 6000);
    heat.arguments.push("--changing=0.1".to_owned());
    heat
}

#[test]
fn damage_to_a_file_that_later_checkpoints_need_is_found_and_never_restored() -> Result<()> {
    let expected = Bed::new()?
        .run(&sparse(), "--every off")?
        .expect_code(0)?
        .result()?;
    let job = StoppedJob::chain(&sparse(), 2)?;
    job.bed.on_store("verify", &[])?.expect_code(0)?;
    let own: Vec<_> = job
        .epochs
        .iter()
        .map(|&epoch| epoch_folder(job.bed.store(), epoch))
        .collect();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut needed = 0;
    for file in job.images()? {
        let is_own = own.iter().any(|folder| file.starts_with(folder));
        needed += usize::from(!is_own);
        let bytes = usize::try_from(fs::metadata(&file)?.len())?;
        for damage in Damage::all(bytes, Some(10), &mut random) {
            job.check_detected(&file, damage)?;
        }
        for damage in Damage::all(bytes, Some(1), &mut random) {
            let outcome = job.restart_damaged(&file, damage)?;
            let what = format!("{damage:?} of {}: {}", file.display(), outcome.story());
            match outcome.code() {
                // From a checkpoint that does not need the file, or not what is damaged of it.
                Some(0) => assert_eq!(outcome.result()?, expected, "{what}"),
                Some(69) => assert!(outcome.result().is_err(), "{what}"),
                _ => panic!("{what}"),
            }
        }
    }
    assert!(needed > 0, "no file of a checkpoint before was needed");
    Ok(())
}

#[test]
fn random_damage_never_restores_wrongly() -> Result<()> {
    let expected = undisturbed()?;
    let job = StoppedJob::make(&heat(), 2)?;
    let mut random = ChaCha8Rng::seed_from_u64(6);
    for file in job.files_of(job.newest())? {
        let bytes = usize::try_from(fs::metadata(&file)?.len())?;
        for damage in Damage::all(bytes, Some(2), &mut random) {
            let outcome = job.restart_damaged(&file, damage)?.expect_code(0)?;
            assert_eq!(
                outcome.result()?,
                expected,
                "{damage:?} of {}",
                file.display()
            );
        }
    }
    Ok(())
}

#[test]
fn a_job_none_of_whose_checkpoints_is_sound_says_so() -> Result<()> {
    let job = StoppedJob::make(&heat(), 2)?;
    let copy = job.copy()?;
    for &epoch in &job.epochs {
        let folder = epoch_folder(copy.store(), epoch);
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "img") {
                let bytes = fs::read(&path).context("an image")?;
                fs::write(
                    &path,
                    Damage::Flip {
                        at: bytes.len() / 2,
                        bits: 1,
                    }
                    .of(&bytes),
                )?;
            }
        }
    }
    let outcome = copy.restart("--every off")?.wait(tests::bed::PATIENCE)?;
    assert_eq!(outcome.code(), Some(69), "{}", outcome.story());
    assert!(outcome.result().is_err());
    for epoch in &job.epochs {
        let told = outcome.stderr_text();
        assert!(told.contains(&format!("epoch {epoch}")), "{told}");
    }
    Ok(())
}
