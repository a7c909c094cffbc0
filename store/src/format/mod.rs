//! The bytes of a rank file: structs as they lie in the file, and the checksums over them.
//!
//! A test compares the structs with the tables of `docs/format.md`.

pub mod checksum;
pub mod layout;
