//! A remote shell between nodes: what `ssh` is on a real cluster, without keys and daemons of the system.
//!
//! It runs over the nodes' network, so that a node that is cut off can't be reached by it either. A connection
//! carries frames: a kind, a length and bytes. The client sends the command line, then its standard input; the
//! server sends what the command prints, then its exit code. As with `ssh`, a command whose client is
//! gone goes on until it reads or writes.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs as _};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// The exit code of a client that did not reach the node, or whose command was ended by a signal: that of `ssh`.
pub const UNREACHED: i32 = 255;

const PORT: u16 = 22;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_FRAME_BYTES: u32 = 1 << 20;

/// Options of `ssh` that are followed by a value.
const WITH_VALUE: &[&str] = &["-o", "-p", "-l", "-i", "-F"];

const COMMAND: u8 = b'C';
const INPUT: u8 = b'I';
const OUTPUT: u8 = b'O';
const ERROR: u8 = b'E';
const EXIT: u8 = b'X';

/// The first frame.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    line: String,
    environment: BTreeMap<String, String>,
}

fn write_frame(stream: &mut impl Write, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(bytes.len() + 5);
    frame.push(kind);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(bytes);
    stream.write_all(&frame)
}

fn read_frame(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::other("a frame that is too long"));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    Ok((head[0], bytes))
}

/// Serves the remote shell of a node until the node ends. Prints a line when it listens.
///
/// # Errors
/// When it can't listen.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).context("listen")?;
    println!("listening");
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        thread::spawn(move || {
            if let Err(error) = answer(stream) {
                eprintln!("{error:#}");
            }
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let (kind, bytes) = read_frame(&mut stream)?;
    if kind != COMMAND {
        bail!("a connection that begins with no command");
    }
    let request: Request = serde_json::from_slice(&bytes).context("a command")?;
    let mut child = Command::new("/bin/sh")
        .args(["-c", &request.line])
        .envs(request.environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start a shell")?;
    let mut input = child.stdin.take();
    let mut from_client = stream.try_clone()?;
    thread::spawn(move || {
        while let Ok((INPUT, bytes)) = read_frame(&mut from_client) {
            let written = match &mut input {
                Some(input) if !bytes.is_empty() => input.write_all(&bytes),
                _ => break,
            };
            if written.is_err() {
                break;
            }
        }
    });
    let stream = Arc::new(Mutex::new(stream));
    let output = forward(&stream, OUTPUT, child.stdout.take());
    let error = forward(&stream, ERROR, child.stderr.take());
    let status = child.wait().context("wait for the command")?;
    // What it printed goes first. A daemon that it left behind may hold its output open: that is not waited for.
    for thread in [output, error] {
        for _ in 0..50 {
            if thread.is_finished() {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
    let code = status.code().unwrap_or(UNREACHED);
    let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
    write_frame(&mut *stream, EXIT, &code.to_le_bytes())?;
    stream.shutdown(Shutdown::Both)?;
    Ok(())
}

fn forward(
    stream: &Arc<Mutex<TcpStream>>,
    kind: u8,
    from: Option<impl Read + Send + 'static>,
) -> thread::JoinHandle<()> {
    let stream = Arc::clone(stream);
    thread::spawn(move || {
        let Some(mut from) = from else { return };
        let mut bytes = [0; 16 << 10];
        while let Ok(count) = from.read(&mut bytes) {
            let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
            if count == 0 || write_frame(&mut *stream, kind, &bytes[..count]).is_err() {
                return;
            }
        }
    })
}

/// Runs a command on a node, called as `ssh [options] HOST COMMAND...`. Returns its exit code.
///
/// # Errors
/// When the node can't be reached, or not any more.
pub fn call(arguments: &[String]) -> Result<i32> {
    let (host, line) = parse(arguments).context("usage: ssh [options] HOST COMMAND...")?;
    let address = (host, PORT)
        .to_socket_addrs()
        .with_context(|| format!("{host}: no such host"))?
        .next()
        .with_context(|| format!("{host} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
        .with_context(|| format!("connect to {host}"))?;
    stream.set_nodelay(true)?;
    let request = Request {
        line,
        environment: std::env::var(crate::process::MARK)
            .map(|mark| (crate::process::MARK.to_owned(), mark))
            .into_iter()
            .collect(),
    };
    write_frame(&mut stream, COMMAND, &serde_json::to_vec(&request)?)?;
    let mut to_server = stream.try_clone()?;
    thread::spawn(move || {
        let mut bytes = [0; 16 << 10];
        let mut input = io::stdin().lock();
        while let Ok(count) = input.read(&mut bytes) {
            if write_frame(&mut to_server, INPUT, &bytes[..count]).is_err() || count == 0 {
                return;
            }
        }
    });
    loop {
        let (kind, bytes) = read_frame(&mut stream)
            .with_context(|| format!("the connection to {host} was closed"))?;
        match kind {
            OUTPUT => io::stdout().write_all(&bytes)?,
            ERROR => io::stderr().write_all(&bytes)?,
            EXIT => {
                io::stdout().flush()?;
                let code = bytes.try_into().ok().context("an exit code")?;
                return Ok(i32::from_le_bytes(code));
            }
            _ => bail!("{host} sends something else"),
        }
    }
}

/// The host and the command line.
fn parse(arguments: &[String]) -> Option<(&str, String)> {
    let mut words = arguments.iter();
    let host = loop {
        let word = words.next()?;
        if WITH_VALUE.contains(&word.as_str()) {
            words.next()?;
        } else if !word.starts_with('-') {
            break word;
        }
    };
    let line = words.map(String::as_str).collect::<Vec<_>>().join(" ");
    let host = host.rsplit('@').next()?;
    (!line.is_empty()).then_some((host, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<(String, String)> {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        parse(&words).map(|(host, line)| (host.to_owned(), line))
    }

    #[test]
    fn options_of_ssh_are_passed_over() {
        let expected = Some(("node1".to_owned(), "hostname -s".to_owned()));
        assert_eq!(parsed("node1 hostname -s"), expected);
        assert_eq!(parsed("-x node1 hostname -s"), expected);
        assert_eq!(
            parsed("-o BatchMode=yes -o ConnectTimeout=5 -q user@node1 hostname -s"),
            expected
        );
        assert_eq!(parsed("-x node1"), None);
        assert_eq!(parsed("-x"), None);
    }
}
