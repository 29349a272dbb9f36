//! Messages on the wire: from bytes to values and back.
//!
//! Decoders take what a remote speaker sent, so nothing here panics on any input, and every refusal carries the
//! NOTIFICATION that the RFC asks for: code, subcode and data.
//!
//! [`header`] cuts a stream into messages; [`open`], [`update`], [`notification`] and [`route_refresh`] read their bodies.
//! [`attributes`] is the form in which path attributes are kept, [`nlri`] how prefixes are read without copying them, and
//! [`encode`] makes the UPDATEs that go out. [`value`] shows attributes to people.
//!
//! The README of this crate has a row for each RFC, with the module and the tests.

pub mod as_path;
pub mod attributes;
pub mod capability;
pub mod encode;
pub mod header;
pub mod nlri;
pub mod notification;
pub mod open;
pub mod route_refresh;
pub mod update;
pub mod value;

#[cfg(test)]
mod golden_tests;
