//! Messages on the wire: from bytes to values and back.
//!
//! Decoders take what a remote speaker sent, so nothing here panics on any input, and every refusal carries the
//! NOTIFICATION that the RFC asks for: code, subcode and data.
//!
//! [`header`] cuts a stream into messages. [`attributes`] is the form in which path attributes are kept.
//!
//! RFCs: 4271 (BGP-4), 8654 (extended messages), 2918 (route refresh).

pub mod as_path;
pub mod attributes;
pub mod capability;
pub mod header;
pub mod notification;
pub mod open;
pub mod route_refresh;
