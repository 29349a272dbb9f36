//! Steps that programs share: each looks at one layer of a packet and says what it found.

pub mod ethernet;
