//! Unit tests of the participant.
