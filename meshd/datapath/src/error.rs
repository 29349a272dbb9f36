//! What can go wrong between us and the kernel.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};
use meshd_abi::LAYOUT_VERSION;
use meshd_core::id::IfIndex;
use thiserror::Error;

use crate::shape::MapShape;

/// What went wrong.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// The folder for pins is not on a bpf file system.
    #[error("{folder} is not on a bpf file system; hint: mount -t bpf bpf /sys/fs/bpf")]
    NotBpffs {
        /// The folder.
        folder: PathBuf,
    },
    /// No daemon has left anything there.
    #[error("there are no maps below {folder}; hint: the datapath was not started on this node (services.enabled)")]
    NothingPinned {
        /// The folder.
        folder: PathBuf,
    },
    /// A map there has other elements than this build's, although the version of the layout is the same.
    #[error(
        "pinned map {path} has {found}, and this build knows it with {expected}; hint: use the meshd that the node runs"
    )]
    OtherElements {
        /// The pin.
        path: PathBuf,
        /// The shape it has.
        found: MapShape,
        /// The shape it has here.
        expected: MapShape,
    },
    /// What is there has the layout of another build.
    #[error(
        "the maps below {folder} have layout version {found}, and this build reads version {LAYOUT_VERSION}; hint: use the \
         meshd that the node runs, or restart the daemon with this one"
    )]
    OtherVersion {
        /// The folder.
        folder: PathBuf,
        /// The newest version there.
        found: u32,
    },
    /// A file operation below the folder for pins failed.
    #[error("failed to {operation} {path}")]
    Pins {
        /// What was tried.
        operation: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// The kernel refused the object.
    #[error("failed to load the embedded programs")]
    Load(#[source] Box<EbpfError>),
    /// The embedded object lacks something: a build that does not match this binary.
    #[error("the embedded object has no {kind} {name}")]
    Missing {
        /// Program or map.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A program could not be attached.
    #[error("failed to {operation} program {program} on link {link}")]
    Attach {
        /// What was tried.
        operation: &'static str,
        /// The program.
        program: &'static str,
        /// The link, by index.
        link: IfIndex,
        /// The refusal.
        source: Box<ProgramError>,
    },
    /// The filter table of a link, or the link itself, could not be changed or read.
    #[error("failed to {operation} program {program} on link {link} over netlink")]
    Filter {
        /// What was tried.
        operation: &'static str,
        /// The program.
        program: &'static str,
        /// The link, by index.
        link: IfIndex,
        /// The refusal.
        source: io::Error,
    },
    /// The filter table could not be listed.
    #[error("failed to list the programs of clsact qdiscs")]
    Filters(#[source] io::Error),
    /// The kernel gave no random number.
    #[error("failed to get a random number from the kernel")]
    Random {
        /// The refusal.
        source: io::Error,
    },
    /// The kernel was asked what it can do, and gave no answer.
    #[error("failed to ask the kernel {question}")]
    Probe {
        /// What it was asked for.
        question: &'static str,
        /// The refusal.
        source: io::Error,
    },
    /// A control group could not be opened.
    #[error("failed to open control group {path}; hint: services.cgroup is the path of a folder in cgroup v2")]
    ControlGroup {
        /// The folder.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// A program could not be put on a control group.
    #[error("failed to {operation} program {program} on control group {path}")]
    AttachSocket {
        /// What was tried.
        operation: &'static str,
        /// The program.
        program: &'static str,
        /// The control group.
        path: PathBuf,
        /// The refusal.
        source: Box<ProgramError>,
    },
    /// The kernel refused a program before any link was involved.
    #[error("failed to load program {program}")]
    Verify {
        /// The program.
        program: &'static str,
        /// The refusal, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// An attachment could not be opened or was of an unexpected kind.
    #[error("failed to open the attachment {path}")]
    Attachment {
        /// The pin, or where it would be.
        path: PathBuf,
        /// The refusal.
        source: LinkError,
    },
    /// An attachment could not be pinned.
    #[error("failed to pin the attachment {path}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// The refusal.
        source: PinError,
    },
    /// A link is gone.
    #[error("link {link} does not exist")]
    NoLink {
        /// The link, by index.
        link: IfIndex,
    },
    /// A map could not be opened or looked at.
    #[error("failed to open map {map}")]
    Map {
        /// The map.
        map: &'static str,
        /// The refusal.
        source: Box<MapError>,
    },
    /// An operation on a map's elements failed.
    #[error("failed to {operation} map {map}")]
    Elements {
        /// What was tried.
        operation: &'static str,
        /// The map.
        map: &'static str,
        /// The refusal.
        source: io::Error,
    },
}
