//! A BGP speaker of the tests' own: what the bench measures daemons with, and what misbehaves towards ours on purpose.
//!
//! It shares no code with the speaker that is tested, and it blocks: a session is a socket, and whoever wants several things
//! at once has several threads. [`wire`] is the little of the protocol that it needs, [`stream`] makes tables as large and as varied
//! as wanted, [`speaker`] shakes hands, sends and counts.

pub mod speaker;
pub mod stream;
pub mod wire;
