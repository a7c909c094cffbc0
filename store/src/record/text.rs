//! Bytes as hexadecimal text, for JSON.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that are written as lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hex(pub Vec<u8>);

impl Hex {
    pub(super) fn array<const N: usize>(&self, what: &str) -> Result<[u8; N], String> {
        <[u8; N]>::try_from(&self.0[..])
            .map_err(|_| format!("{what} has {} bytes, not {N}", self.0.len()))
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map(Self).ok_or_else(|| {
            D::Error::custom("expected an even number of lower-case hexadecimal digits")
        })
    }
}

fn parse(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks(2)
        .map(|pair| Some(digit(&pair[0])? << 4 | digit(&pair[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_lower_case_pairs_are_bytes() {
        assert_eq!(parse("00ff7a"), Some(vec![0, 0xff, 0x7a]));
        assert_eq!(parse(""), Some(vec![]));
        for wrong in ["0", "0F", "0g", "é"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
