//! The secret that shows that a caller belongs to the job.

use std::fmt;

use subtle::ConstantTimeEq;
use wire::Address;

/// So many bytes from the system's random numbers, as hexadecimal digits: for names that nobody has guessed before.
///
/// # Errors
/// When the system has none to give.
pub(crate) fn random_digits<const BYTES: usize>() -> Result<String, getrandom::Error> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(hexadecimal(&bytes))
}

/// An abstract control address that nobody has guessed before.
///
/// # Errors
/// When the system has no random numbers to give.
pub(crate) fn random_address() -> Result<Address, getrandom::Error> {
    Ok(Address::Abstract(format!(
        "ckpt-{}",
        random_digits::<16>()?
    )))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of a token.
pub const TOKEN_BYTES: usize = 32;

/// A job's token. Drawn anew each time `ckpt` runs a job, handed to its processes by the environment and
/// to commands by the control file (mode 0600). Its `Debug` form does not tell it.
#[derive(Clone)]
pub struct Token([u8; TOKEN_BYTES]);

impl Token {
    /// A new one from the system's random numbers.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn draw() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// A token that was read from a control file.
    #[must_use]
    pub fn from_bytes(bytes: [u8; TOKEN_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes, for a control file or a [`protocol::control::Hello`].
    #[must_use]
    pub fn bytes(&self) -> [u8; TOKEN_BYTES] {
        self.0
    }

    /// The token as hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hexadecimal(&self.0)
    }

    /// Whether this is the token that a caller shows. Takes as long for any wrong one, so that a caller
    /// learns nothing from the time.
    #[must_use]
    pub fn is(&self, shown: &[u8; TOKEN_BYTES]) -> bool {
        self.0.ct_eq(shown).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_itself_and_no_other() {
        let token = Token::draw().unwrap();
        assert!(token.is(&token.bytes()));
        let mut other = token.bytes();
        other[31] ^= 1;
        assert!(!token.is(&other));
        assert!(!token.is(&Token::draw().unwrap().bytes()));
    }

    #[test]
    fn a_token_never_shows_in_debug_output() {
        let token = Token::from_bytes([0xab; TOKEN_BYTES]);
        assert!(!format!("{token:?}").contains("ab"));
        assert_eq!(token.to_hex(), "ab".repeat(32));
    }
}
