//! The reference of the `migrate` benchmark between nodes: bytes over a plain TCP connection, with one thread at each end.
//!
//! `bench-tcp serve BYTES FILE` receives so many bytes from each caller, one after the other, into memory that was touched before, and
//! answers when it has all; the file tells its port. `bench-tcp send BYTES ADDRESS` sends them from such, and prints how long it was
//! until the answer, in milliseconds.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", bytes, port] => serve(bytes.parse()?, port),
        ["send", bytes, address] => send(bytes.parse()?, address),
        _ => bail!("bench-tcp serve BYTES FILE, or bench-tcp send BYTES ADDRESS"),
    }
}

fn serve(bytes: usize, port: &str) -> Result<()> {
    let mut memory = vec![1; bytes];
    let listener = TcpListener::bind("0.0.0.0:0")?;
    fs::write(port, format!("{}\n", listener.local_addr()?.port()))?;
    loop {
        let (mut caller, _) = listener.accept()?;
        caller.set_nodelay(true)?;
        caller.read_exact(&mut memory)?;
        caller.write_all(&[1])?;
    }
}

fn send(bytes: usize, address: &str) -> Result<()> {
    let memory = vec![1; bytes];
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.set_nodelay(true)?;
    let begun = Instant::now();
    stream.write_all(&memory)?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    println!("{}", begun.elapsed().as_secs_f64() * 1e3);
    Ok(())
}
