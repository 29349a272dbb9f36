//! Runs containerlab topologies in plain Linux network namespaces.
//!
//! # What for
//!
//! A mesh of clusters is tested by building one: nodes, switches, pods, real daemons, real packets. containerlab has a
//! good file format for that and needs a container engine to run it. This crate runs the same files on a bare kernel, in
//! about a second, several at a time, without leaving anything behind. The command `lab` is for people, the library for
//! tests.
//!
//! # How it works
//!
//! [`Topology`] reads and validates a file. [`Lab::up`] claims the lab's folder, makes a control group, issues
//! certificates, creates the namespaces of all nodes at the same time, wires them, runs their `exec` commands and starts
//! their daemons. [`Node`] runs programs and code inside, [`Daemon`] starts, kills and reads logs. [`Lab::down`] kills
//! the control group; the kernel then removes the namespaces with everything in them, and the folder goes last.
//!
//! # Why so
//!
//! - Nothing is linked, mounted or routed in the host's namespaces. A switch is a bridge in a namespace of its own.
//! - Every process is in the lab's control group before its program starts, so `down` needs no list that could be wrong
//!   and works after `up` was killed at any point.
//! - Code enters a node in a thread made for it, so a test can open sockets in a node without a helper program.
//!
//! # What is ugly
//!
//! Process numbers and `/tmp` are shared with the host. Programs see the host's files unless a bind or one of the private
//! folders covers them.

pub mod catalog;
pub mod certificate;
mod cgroup;
pub mod command_line;
mod daemon;
mod error;
mod lab;
mod links;
mod namespace;
mod node;
mod process;
mod record;
mod remove;
mod start;
pub mod topology;
pub mod yaml;

pub use daemon::Daemon;
pub use error::{Error, Result, chain};
pub use lab::{Lab, Options};
pub use node::{Node, Output, Running};
pub use process::ProcessId;
pub use topology::{Role, Topology, TopologyError};
