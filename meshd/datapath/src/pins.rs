//! Files below the folder of pins.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::MapInfo,
    programs::links::{LinkError, PinnedLink},
};
use meshd_core::id::IfIndex;

use crate::{DatapathError, shape::MapShape};

/// Between the program's name and the link's index in the name of a pin.
const LINK_MARK: &str = "_link_";

/// Name of the pin of a program's attachment to a link.
pub(crate) fn link_name(program: &str, link: IfIndex) -> String {
    format!("{program}{LINK_MARK}{}", link.0)
}

/// Program and link of an attachment's pin; `None` for the pin of a map.
pub(crate) fn link_of(pin: &Path) -> Option<(&str, IfIndex)> {
    let (program, link) = pin.file_name()?.to_str()?.split_once(LINK_MARK)?;
    Some((program, IfIndex(link.parse().ok()?)))
}

/// Between the program's name and the number of the control group in the name of a pin.
const GROUP_MARK: &str = "_cgroup_";

/// Name of the pin of a program's attachment to a control group.
pub(crate) fn group_name(program: &str, number: u64) -> String {
    format!("{program}{GROUP_MARK}{number}")
}

/// Program and number of the control group of an attachment's pin.
pub(crate) fn group_of(pin: &Path) -> Option<(&str, u64)> {
    let (program, number) = pin.file_name()?.to_str()?.split_once(GROUP_MARK)?;
    Some((program, number.parse().ok()?))
}

/// True for the pin of an attachment.
pub(crate) fn is_attachment(pin: &Path) -> bool {
    link_of(pin).is_some() || group_of(pin).is_some()
}

/// The shape of a pinned map; `None` without a pin. `map` is what an error calls it.
pub(crate) fn shape_of(pin: &Path, map: &'static str) -> Result<Option<MapShape>, DatapathError> {
    if !pin.exists() {
        return Ok(None);
    }
    let map_error = |source| DatapathError::Map { map, source: Box::new(source) };
    let info = MapInfo::from_pin(pin).map_err(map_error)?;
    Ok(Some(MapShape {
        kind: info.map_type().map_err(map_error)? as u32,
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
    }))
}

/// Moves a pin in one step; false when there is none.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<bool, DatapathError> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(DatapathError::Pins { operation: "move", path: from.to_owned(), source }),
    }
}

/// The attachment behind a pin; `None` without a pin.
pub(crate) fn open_link(pin: &Path) -> Result<Option<PinnedLink>, DatapathError> {
    match PinnedLink::from_pin(pin) {
        Ok(attachment) => Ok(Some(attachment)),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DatapathError::Attachment { path: pin.to_owned(), source }),
    }
}

/// Removes the pin of an attachment and with it the program from its link; false when there is no such pin.
pub(crate) fn detach(pin: &Path) -> Result<bool, DatapathError> {
    let Some(attachment) = open_link(pin)? else {
        return Ok(false);
    };
    remove(pin)?;
    // The kernel detaches with the last reference. Closing a descriptor does that at once; without this one it would
    // happen some time after the file is gone.
    drop(attachment);
    Ok(true)
}

/// Removes a pin.
pub(crate) fn remove(pin: &Path) -> Result<(), DatapathError> {
    fs::remove_file(pin).map_err(|source| DatapathError::Pins { operation: "remove", path: pin.to_owned(), source })
}

/// Removes a folder of pins; one that holds something else (another layout version, a foreign pin) stays.
pub(crate) fn remove_empty_folder(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_dir(path) {
        Err(source) if !matches!(source.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
            Err(DatapathError::Pins { operation: "remove", path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What lies in a folder of pins.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let list = |source| DatapathError::Pins { operation: "list", path: folder.to_owned(), source };
    fs::read_dir(folder).map_err(list)?.map(|entry| entry.map(|entry| entry.path()).map_err(list)).collect()
}
