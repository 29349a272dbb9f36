//! The programs of sockets, and the control group they are on.
//!
//! They are on a control group and with that on everything below it. The name of an attachment's pin holds the number of the group, so
//! that after a change of the configuration, or when a group of the same name was made anew, the old attachment is found and
//! taken away.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, links::FdLink},
    sys::SyscallError,
};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use tracing::debug;

use crate::{Attached, DatapathError, Programs, pins, programs, sys};

/// A program of the object that is asked about sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SocketProgram {
    /// connect(2) of IPv4 sockets.
    Connect4,
    /// connect(2) of IPv6 sockets.
    Connect6,
    /// Datagrams of IPv4 sockets that are not connected.
    Send4,
    /// Datagrams of IPv6 sockets that are not connected.
    Send6,
    /// Senders of datagrams that IPv4 sockets receive.
    Receive4,
    /// Senders of datagrams that IPv6 sockets receive.
    Receive6,
    /// getpeername(2) of IPv4 sockets.
    Peer4,
    /// getpeername(2) of IPv6 sockets.
    Peer6,
}

impl SocketProgram {
    /// Every program. What shows a service to a process comes first: nothing is translated before it can be shown.
    pub const ALL: [Self; 8] = [
        Self::Peer4,
        Self::Peer6,
        Self::Receive4,
        Self::Receive6,
        Self::Send4,
        Self::Send6,
        Self::Connect4,
        Self::Connect6,
    ];

    /// Its name in the object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "socket_connect4",
            Self::Connect6 => "socket_connect6",
            Self::Send4 => "socket_send4",
            Self::Send6 => "socket_send6",
            Self::Receive4 => "socket_receive4",
            Self::Receive6 => "socket_receive6",
            Self::Peer4 => "socket_peer4",
            Self::Peer6 => "socket_peer6",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|program| program.name() == name)
    }
}

/// A control group of version 2.
#[derive(Debug)]
pub struct ControlGroup {
    path: PathBuf,
    folder: File,
    number: u64,
}

impl ControlGroup {
    /// Opens the group that a folder is.
    ///
    /// # Errors
    /// When there is no such folder, or it is none of a file system of control groups of version 2.
    pub fn open(path: &Path) -> Result<Self, DatapathError> {
        let error = |source| DatapathError::ControlGroup { path: path.to_owned(), source };
        let folder = File::open(path).map_err(error)?;
        let kind = fstatfs(&folder).map_err(|errno| error(errno.into()))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(error(io::Error::other("it is no control group of version 2")));
        }
        let number = folder.metadata().map_err(error)?.ino();
        Ok(Self { path: path.to_owned(), folder, number })
    }

    /// Its number, which no other group has had since the machine started.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }
}

impl AsFd for ControlGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

impl Programs {
    /// Puts a program on a control group. An attachment of ours that is already there gets this program in one step; programs
    /// of others on the same group are asked besides.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_socket(&mut self, program: SocketProgram, group: &ControlGroup) -> Result<Attached, DatapathError> {
        let pin = self.socket_pin(program, group.number)?;
        let refused = |operation, source| DatapathError::AttachSocket {
            operation,
            program: program.name(),
            path: group.path.clone(),
            source: Box::new(source),
        };
        let of_kernel = |call, io_error| ProgramError::SyscallError(SyscallError { call, io_error });
        if pin.exists() {
            let attachment = sys::object(&pin).map_err(|error| refused("adopt", of_kernel("BPF_OBJ_GET", error)))?;
            let loaded = socket_program(&mut self.ebpf, program)?;
            let loaded = loaded.fd().map_err(|error| refused("adopt", error))?;
            match sys::update_link(attachment.as_fd(), loaded.as_fd()) {
                Ok(()) => {
                    debug!(program = program.name(), "kept the attachment of an earlier process");
                    return Ok(Attached::Adopted);
                }
                // The group is gone, and its number belongs to another one.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => pins::remove(&pin)?,
                Err(error) => return Err(refused("adopt", of_kernel("BPF_LINK_UPDATE", error))),
            }
        }
        let loaded = socket_program(&mut self.ebpf, program)?;
        let of_loader = |source| refused("attach", source);
        // Attachments never exclude each other, and kernels before 6.12 want to hear nothing about it.
        let id = loaded.attach(group, CgroupAttachMode::Single).map_err(of_loader)?;
        let attachment = loaded.take_link(id).map_err(of_loader)?;
        let attachment = FdLink::try_from(attachment)
            .map_err(|source| DatapathError::Attachment { path: program.name().into(), source })?;
        attachment.pin(&pin).map_err(|source| DatapathError::Pin { path: pin, source })?;
        Ok(Attached::Group)
    }

    /// Programs and control groups, by number, of attachments below the folder of pins, whoever made them.
    #[must_use]
    pub fn attached_sockets(&self) -> Vec<(SocketProgram, u64)> {
        let folders = self.older.iter().chain([&self.generation]);
        // A folder that cannot be listed shows when something is pinned in it.
        let pins = folders.flat_map(|folder| pins::entries(&folder.path).unwrap_or_default());
        let mut attached: Vec<_> = pins
            .filter_map(|pin| {
                let (name, number) = pins::group_of(&pin)?;
                Some((SocketProgram::of_name(name)?, number))
            })
            .collect();
        attached.sort_unstable();
        attached.dedup();
        attached
    }

    /// Takes a program off a control group; false when it was not on it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach_socket(&mut self, program: SocketProgram, group: u64) -> Result<bool, DatapathError> {
        pins::detach(&self.socket_pin(program, group)?)
    }

    fn socket_pin(&self, program: SocketProgram, group: u64) -> Result<PathBuf, DatapathError> {
        self.pin_of(pins::group_name(program.name(), group))
    }
}

pub(crate) fn load(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    for program in SocketProgram::ALL {
        let loaded = socket_program(ebpf, program)?.load();
        loaded.map_err(|source| programs::verify_error(program.name(), source))?;
    }
    Ok(())
}

fn socket_program(ebpf: &mut Ebpf, program: SocketProgram) -> Result<&mut CgroupSockAddr, DatapathError> {
    match ebpf.program_mut(program.name()).map(TryInto::try_into) {
        Some(Ok(program)) => Ok(program),
        Some(Err(_)) | None => Err(DatapathError::Missing { kind: "socket program", name: program.name() }),
    }
}
