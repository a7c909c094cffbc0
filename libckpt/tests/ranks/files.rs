//! Files of ranks: used like those of the standard library, with one writer each.

use std::io::{BufRead as _, BufReader, BufWriter, ErrorKind, Read as _, Seek as _, Write as _};
use std::path::PathBuf;

use libckpt::Result;
use libckpt::fs::File;
use libckpt::prelude::*;

pub fn check(world: &World) -> Result<()> {
    for check in [
        what_was_written_is_read_again,
        a_file_has_one_writer,
        what_is_no_regular_file_is_refused,
        a_thread_can_use_a_file_but_not_open_one,
    ] {
        check(world)?;
        world.barrier()?;
    }
    Ok(())
}

/// The file of a rank; the same for all ranks, in whatever processes they are.
fn path(rank: usize) -> PathBuf {
    let job = std::os::unix::process::parent_id();
    std::env::temp_dir().join(format!("ckpt-ranks-{job}-{rank}"))
}

fn what_was_written_is_read_again(world: &World) -> Result<()> {
    let path = path(world.rank());
    let mut lines = BufWriter::new(File::create(&path).unwrap());
    for number in 0..2000 {
        writeln!(lines, "line {number}").unwrap();
        if number % 500 == 0 {
            world.barrier()?;
        }
    }
    drop(lines);
    let read = BufReader::new(File::open(&path).unwrap());
    for (number, line) in read.lines().enumerate() {
        assert_eq!(line.unwrap(), format!("line {number}"));
    }
    let mut file = File::options().read(true).append(true).open(&path).unwrap();
    let bytes = file.metadata().unwrap().len();
    file.write_all(b"the end").unwrap();
    file.sync_data().unwrap();
    file.seek(std::io::SeekFrom::Start(bytes)).unwrap();
    let mut end = String::new();
    file.read_to_string(&mut end).unwrap();
    assert_eq!(end, "the end");
    file.set_len(4).unwrap();
    assert_eq!(std::fs::read(file.path().unwrap()).unwrap(), b"line");
    drop(file);
    std::fs::remove_file(&path).unwrap();
    Ok(())
}

fn a_file_has_one_writer(world: &World) -> Result<()> {
    let others = path((world.rank() + 1) % world.size());
    let own = File::create(path(world.rank())).unwrap();
    world.barrier()?;
    let refused = File::options().append(true).open(&others).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ResourceBusy, "{refused}");
    drop(File::open(&others).unwrap());
    world.barrier()?;
    drop(own);
    world.barrier()?;
    // Nobody has it open now, and one of them takes it.
    if world.rank() == 0 {
        drop(File::create(&others).unwrap());
    }
    world.barrier()?;
    std::fs::remove_file(path(world.rank())).unwrap();
    Ok(())
}

fn what_is_no_regular_file_is_refused(_: &World) -> Result<()> {
    for path in ["/dev/null", "/tmp"] {
        let refused = File::open(path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    }
    let missing = File::open("/no/such/file").unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    Ok(())
}

fn a_thread_can_use_a_file_but_not_open_one(world: &World) -> Result<()> {
    let path = path(world.rank());
    let mut file = File::create(&path).unwrap();
    std::thread::scope(|scope| {
        let wrote = scope.spawn(|| file.write_all(b"by a thread"));
        wrote.join().unwrap().unwrap();
        let refused = scope.spawn(|| File::open(&path).map(drop)).join().unwrap();
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    });
    assert_eq!(std::fs::read(&path).unwrap(), b"by a thread");
    std::fs::remove_file(&path).unwrap();
    Ok(())
}
