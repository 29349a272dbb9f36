//! The layout of a record in the data file, open for tools and for fuzzing.

pub use crate::disk::codec::{CodecError, decode, encode};
