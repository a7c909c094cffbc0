//! The side of a command (`ckpt status`, `ckpt checkpoint`): one request to a running coordinator.

use std::io::{self, Read, Write};
use std::time::Duration;

use protocol::control::{CONTROL_VERSION, Caller, Hello, Request, Response};
use protocol::frame::{Decoder, FrameError, encode};
use protocol::migration::Step;
use wire::Address;

use crate::token::Token;

/// Why a request could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the address: the coordinator is gone.
    #[error("no coordinator answers at {address}: {source}")]
    NotRunning {
        /// Where.
        address: Address,
        /// What the system says.
        source: io::Error,
    },
    /// The connection broke.
    #[error(
        "the coordinator's connection broke: {0}; the job has ended, or its coordinator was lost"
    )]
    Broken(#[source] io::Error),
    /// The answer made no sense.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Sends a request and waits for its answer, at most `patience` if one is given.
///
/// # Errors
/// When there is no coordinator, or it goes away before it answers.
pub fn ask(
    address: &Address,
    token: &Token,
    request: &Request,
    patience: Option<Duration>,
) -> Result<Response, ClientError> {
    ask_and_watch(address, token, request, patience, &mut |_| ())
}

/// The same for a request that takes its time; `watch` is told of its steps.
///
/// # Errors
/// As [`ask`].
pub fn ask_and_watch(
    address: &Address,
    token: &Token,
    request: &Request,
    patience: Option<Duration>,
    watch: &mut dyn FnMut(Step),
) -> Result<Response, ClientError> {
    let mut steps = |response: &Response| {
        if let Response::Moving { step } = response {
            watch(*step);
        }
    };
    ask_and_follow(address, token, request, patience, &mut steps)
}

/// The same; `follow` is told of every response before the last.
///
/// # Errors
/// As [`ask`].
pub fn ask_and_follow(
    address: &Address,
    token: &Token,
    request: &Request,
    patience: Option<Duration>,
    follow: &mut dyn FnMut(&Response),
) -> Result<Response, ClientError> {
    let mut stream = address
        .connect()
        .map_err(|source| ClientError::NotRunning {
            address: address.clone(),
            source,
        })?;
    stream
        .set_read_timeout(patience)
        .map_err(ClientError::Broken)?;
    let mut bytes = Vec::new();
    let hello = Hello {
        version: CONTROL_VERSION,
        token: token.bytes(),
        caller: Caller::Command,
    };
    encode(&hello, &mut bytes)?;
    encode(request, &mut bytes)?;
    stream.write_all(&bytes).map_err(ClientError::Broken)?;
    let mut decoder = Decoder::new();
    let mut piece = [0; 16 << 10];
    loop {
        match decoder.next()? {
            Some(response @ (Response::Moving { .. } | Response::Draining { .. })) => {
                follow(&response);
                continue;
            }
            Some(response) => return Ok(response),
            None => {}
        }
        match stream.read(&mut piece) {
            Ok(0) => {
                return Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
            Ok(count) => decoder.feed(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ClientError::Broken(error)),
        }
    }
}
