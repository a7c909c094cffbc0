//! Damage to stored files, byte by byte.
