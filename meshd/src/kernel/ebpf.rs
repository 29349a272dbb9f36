//! The eBPF programs of meshd: load, attach, read, detach.
//!
//! The object is embedded in the binary by the build script. Loading it puts its maps under
//! `<folder>/v<LAYOUT_VERSION>/`, where they outlive the process; attaching a program puts a pin of the attachment beside
//! them. That is the whole life story across a restart: the next process loads its own program, opens the pinned
//! attachment and swaps the program in it in one step, so that no packet passes in between without one. Nothing is
//! detached when [`Programs`] is dropped; [`Programs::detach_count`] and [`Programs::remove`] do that on purpose.
//!
//! Two things are less nice than they look. The kernel reuses a pinned map without asking whether it still has the shape
//! that the program was compiled for, so the shape is compared here before loading. And the name of an attachment's pin
//! holds the index of the link, not its name: bpffs refuses dots, and names of VLAN links have them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, Pod,
    maps::{MapData, MapError, MapInfo, MapType, PerCpuArray},
    pin::PinError,
    programs::{ProgramError, xdp::XdpError},
    programs::{
        Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        xdp::XdpLink,
    },
};
use meshd_abi::{Counter, LAYOUT_VERSION, ProtocolClass};
use meshd_core::id::IfIndex;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;
use tracing::debug;

/// What the build script compiled, aligned as the ELF parser needs it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/meshd-ebpf"));

/// Name of the counting program in the object.
const COUNT_PROGRAM: &str = "count";
/// Name of its map in the object and below the folder.
const PACKETS_MAP: &str = "packets";
/// What the pin of an attachment of [`COUNT_PROGRAM`] begins with; the index of the link follows.
const COUNT_PIN_PREFIX: &str = "count_link_";

/// What went wrong between us and the kernel.
#[derive(Debug, Error)]
pub enum ProgramsError {
    /// The folder for pins is not on a bpf file system.
    #[error("{folder} is not on a bpf file system; hint: mount -t bpf bpf /sys/fs/bpf")]
    NotBpffs {
        /// The folder.
        folder: PathBuf,
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
    /// A pinned map has another shape than the program expects.
    #[error(
        "pinned map {path} has {found}, and the program needs {expected}; hint: it was made by another build of layout \
         version {LAYOUT_VERSION}, and removing it loses only its counters"
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// The shape it has.
        found: MapShape,
        /// The shape it must have.
        expected: MapShape,
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
    /// A program could not be loaded or attached.
    #[error("failed to {operation} program {program} on link {link}")]
    Program {
        /// What was tried.
        operation: &'static str,
        /// The program.
        program: &'static str,
        /// The link, by index.
        link: IfIndex,
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
    /// A map could not be read.
    #[error("failed to read map {map}")]
    Map {
        /// The map.
        map: &'static str,
        /// The refusal.
        source: Box<MapError>,
    },
}

/// What the kernel enforces about a map; two maps of the same shape can stand in for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Kind of map, as the kernel numbers it.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Number of elements.
    pub max_entries: u32,
}

impl std::fmt::Display for MapShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "type {}, {}-byte keys, {}-byte values and {} entries",
            self.kind, self.key_size, self.value_size, self.max_entries
        )
    }
}

/// How a program ended up on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// In the driver, before a socket buffer exists.
    Native,
    /// In the network stack, because the driver has no XDP of its own. Slower, same verdicts.
    Generic,
    /// The attachment of an earlier process was kept and runs this program now, in the mode it had.
    Adopted,
}

/// [`Counter`] as a map value.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct CounterValue(Counter);

// SAFETY: a transparent wrapper around a `repr(C)` struct of two u64 without padding; every bit pattern is a value.
unsafe impl Pod for CounterValue {}

/// The loaded programs and their maps.
///
/// Dropping this closes our descriptors and changes nothing in the kernel: what is pinned stays.
pub struct Programs {
    ebpf: Ebpf,
    folder: PathBuf,
}

impl Programs {
    /// Loads the embedded object; maps that an earlier process left below `folder` are taken over with their content.
    ///
    /// `folder` must be on a bpf file system and is created when it is absent; in production it is
    /// [`meshd_abi::BPFFS_FOLDER`].
    pub fn load(folder: &Path) -> Result<Self, ProgramsError> {
        let folder = prepare_folder(folder)?;
        refuse_other_shape(
            &folder.join(PACKETS_MAP),
            MapShape {
                kind: MapType::PerCpuArray as u32,
                key_size: size_of::<u32>() as u32,
                value_size: size_of::<Counter>() as u32,
                max_entries: ProtocolClass::COUNT,
            },
        )?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&folder)
            .load(OBJECT)
            .map_err(|error| ProgramsError::Load(Box::new(error)))?;
        count_program(&mut ebpf)?
            .load()
            .map_err(|source| ProgramsError::Verify { program: COUNT_PROGRAM, source: Box::new(source) })?;
        Ok(Self { ebpf, folder })
    }

    /// Puts the counting program on a link of the caller's network namespace.
    ///
    /// An attachment of ours that is already there gets this program in one step. A foreign XDP program is left alone: the
    /// kernel answers EBUSY and that is the error.
    pub fn attach_count(&mut self, link: IfIndex) -> Result<Attached, ProgramsError> {
        let pin = self.count_pin(link);
        if let Some(attachment) = open_pin(&pin)? {
            if self.adopt(link, &pin, attachment)? {
                debug!(%link, "kept the attachment of an earlier process");
                return Ok(Attached::Adopted);
            }
            // The link it was on is gone and its index was given to another one.
            remove_pin(&pin)?;
        }
        let program = count_program(&mut self.ebpf)?;
        let (id, attached) = match program.attach_to_if_index(link.0, XdpMode::Driver) {
            Ok(id) => (id, Attached::Native),
            Err(error) if errno(&error) == Some(libc::EOPNOTSUPP) => {
                let id = program
                    .attach_to_if_index(link.0, XdpMode::Skb)
                    .map_err(|source| program_error("attach", link, source))?;
                (id, Attached::Generic)
            }
            Err(source) => return Err(program_error("attach", link, source)),
        };
        let attachment = program.take_link(id).map_err(|source| program_error("attach", link, source))?;
        FdLink::try_from(attachment)
            .map_err(|source| ProgramsError::Attachment { path: pin.clone(), source })?
            .pin(&pin)
            .map_err(|source| ProgramsError::Pin { path: pin, source })?;
        debug!(%link, ?attached, "attached the counting program");
        Ok(attached)
    }

    /// Takes the counting program off a link; false when it was not on it.
    pub fn detach_count(&mut self, link: IfIndex) -> Result<bool, ProgramsError> {
        detach_pin(&self.count_pin(link))
    }

    /// Frames and bytes by class, summed over all CPUs, since the map was made.
    pub fn counters(&self) -> Result<BTreeMap<ProtocolClass, Counter>, ProgramsError> {
        let map = self.ebpf.map(PACKETS_MAP).ok_or(ProgramsError::Missing { kind: "map", name: PACKETS_MAP })?;
        let map_error = |source| ProgramsError::Map { map: PACKETS_MAP, source: Box::new(source) };
        let packets: PerCpuArray<&MapData, CounterValue> = PerCpuArray::try_from(map).map_err(map_error)?;
        ProtocolClass::ALL
            .into_iter()
            .map(|class| {
                let per_cpu = packets.get(&(class as u32), 0).map_err(map_error)?;
                let sum = per_cpu.iter().fold(Counter::default(), |sum, value| sum.plus(value.0));
                Ok((class, sum))
            })
            .collect()
    }

    /// Detaches everything of ours below the folder and removes the folder: what `drain` and uninstalling want.
    ///
    /// Continues after a failure and reports the first.
    pub fn remove(self) -> Result<(), ProgramsError> {
        let Self { ebpf, folder } = self;
        drop(ebpf);
        let entries = fs::read_dir(&folder).map_err(|source| ProgramsError::Pins {
            operation: "list",
            path: folder.clone(),
            source,
        })?;
        let mut outcome = Ok(());
        for entry in entries {
            let removed = entry
                .map_err(|source| ProgramsError::Pins { operation: "list", path: folder.clone(), source })
                .and_then(|entry| {
                    let name = entry.file_name();
                    if name.to_string_lossy().starts_with(COUNT_PIN_PREFIX) {
                        detach_pin(&entry.path()).map(|_| ())
                    } else {
                        remove_pin(&entry.path())
                    }
                });
            outcome = outcome.and(removed);
        }
        outcome?;
        remove_empty_folder(&folder)?;
        folder.parent().map_or(Ok(()), remove_empty_folder)
    }

    fn count_pin(&self, link: IfIndex) -> PathBuf {
        self.folder.join(format!("{COUNT_PIN_PREFIX}{}", link.0))
    }

    /// Puts our program into an attachment; false when the attachment has lost its link.
    fn adopt(&mut self, link: IfIndex, pin: &Path, attachment: PinnedLink) -> Result<bool, ProgramsError> {
        let attachment = XdpLink::try_from(FdLink::from(attachment))
            .map_err(|source| ProgramsError::Attachment { path: pin.to_owned(), source })?;
        let program = count_program(&mut self.ebpf)?;
        match program.attach_to_link(attachment) {
            Ok(id) => {
                // The pin alone keeps it; a descriptor held here would keep the program on after the pin is removed.
                program.take_link(id).map_err(|source| program_error("adopt", link, source))?;
                Ok(true)
            }
            Err(error) if errno(&error) == Some(libc::ENOLINK) => Ok(false),
            Err(source) => Err(program_error("adopt", link, source)),
        }
    }
}

fn count_program(ebpf: &mut Ebpf) -> Result<&mut Xdp, ProgramsError> {
    let missing = ProgramsError::Missing { kind: "XDP program", name: COUNT_PROGRAM };
    match ebpf.program_mut(COUNT_PROGRAM).map(TryInto::try_into) {
        Some(Ok(program)) => Ok(program),
        Some(Err(_)) | None => Err(missing),
    }
}

/// Makes `folder/v<LAYOUT_VERSION>` after checking where it would be.
fn prepare_folder(folder: &Path) -> Result<PathBuf, ProgramsError> {
    let existing = if folder.exists() { folder } else { folder.parent().unwrap_or(folder) };
    let kind = statfs(existing)
        .map_err(|errno| ProgramsError::Pins { operation: "inspect", path: existing.to_owned(), source: errno.into() })?
        .filesystem_type();
    if kind != BPF_FS_MAGIC {
        return Err(ProgramsError::NotBpffs { folder: folder.to_owned() });
    }
    let versioned = folder.join(format!("v{LAYOUT_VERSION}"));
    fs::create_dir_all(&versioned).map_err(|source| ProgramsError::Pins {
        operation: "create",
        path: versioned.clone(),
        source,
    })?;
    Ok(versioned)
}

/// Compares a pinned map with what the program needs; an absent pin is fine.
fn refuse_other_shape(pin: &Path, expected: MapShape) -> Result<(), ProgramsError> {
    if !pin.exists() {
        return Ok(());
    }
    let map_error = |source| ProgramsError::Map { map: PACKETS_MAP, source: Box::new(source) };
    let info = MapInfo::from_pin(pin).map_err(map_error)?;
    let found = MapShape {
        kind: info.map_type().map_err(map_error)? as u32,
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
    };
    if found == expected { Ok(()) } else { Err(ProgramsError::Layout { path: pin.to_owned(), found, expected }) }
}

fn open_pin(pin: &Path) -> Result<Option<PinnedLink>, ProgramsError> {
    match PinnedLink::from_pin(pin) {
        Ok(attachment) => Ok(Some(attachment)),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ProgramsError::Attachment { path: pin.to_owned(), source }),
    }
}

/// Removes the pin of an attachment and with it the program from its link; false when there is no such pin.
fn detach_pin(pin: &Path) -> Result<bool, ProgramsError> {
    let Some(attachment) = open_pin(pin)? else {
        return Ok(false);
    };
    remove_pin(pin)?;
    // The kernel detaches with the last reference. Closing a descriptor does that at once; without this one it would
    // happen some time after the file is gone.
    drop(attachment);
    Ok(true)
}

/// Removes a folder of pins; one that holds something else (another layout version, a foreign pin) stays.
fn remove_empty_folder(path: &Path) -> Result<(), ProgramsError> {
    match fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::DirectoryNotEmpty => {
            Err(ProgramsError::Pins { operation: "remove", path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove_pin(pin: &Path) -> Result<(), ProgramsError> {
    fs::remove_file(pin).map_err(|source| ProgramsError::Pins { operation: "remove", path: pin.to_owned(), source })
}

fn program_error(operation: &'static str, link: IfIndex, source: ProgramError) -> ProgramsError {
    ProgramsError::Program { operation, program: COUNT_PROGRAM, link, source: Box::new(source) }
}

/// The kernel's own answer inside an error of aya.
fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::XdpError(XdpError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    }
}

// A file of the build script, compiled here a second time so that its tests run.
#[cfg(test)]
#[path = "../../build/toolchain.rs"]
mod toolchain;
