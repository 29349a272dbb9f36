//! Tests of the tables as a whole: with the decoder at both ends, as peers see them.

mod exports;
mod harness;
mod histories;
mod lifecycle;
mod model;
mod selection;
