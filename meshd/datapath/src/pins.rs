//! Files below the folder of pins.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::MapInfo,
    programs::links::{LinkError, PinnedLink},
};
use meshd_abi::LAYOUT_VERSION;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::{
    DatapathError,
    shape::{MapShape, MapSpec},
};

/// Makes `folder/v<LAYOUT_VERSION>` after checking where it would be.
pub(crate) fn prepare_folder(folder: &Path) -> Result<PathBuf, DatapathError> {
    let existing = if folder.exists() { folder } else { folder.parent().unwrap_or(folder) };
    let kind = statfs(existing)
        .map_err(|errno| DatapathError::Pins { operation: "inspect", path: existing.to_owned(), source: errno.into() })?
        .filesystem_type();
    if kind != BPF_FS_MAGIC {
        return Err(DatapathError::NotBpffs { folder: folder.to_owned() });
    }
    let versioned = folder.join(format!("v{LAYOUT_VERSION}"));
    fs::create_dir_all(&versioned).map_err(|source| DatapathError::Pins {
        operation: "create",
        path: versioned.clone(),
        source,
    })?;
    Ok(versioned)
}

/// Compares a pinned map with what the programs need; an absent pin is fine.
pub(crate) fn refuse_other_shape(pin: &Path, spec: &MapSpec) -> Result<(), DatapathError> {
    if !pin.exists() {
        return Ok(());
    }
    let map_error = |source| DatapathError::Map { map: spec.name, source: Box::new(source) };
    let info = MapInfo::from_pin(pin).map_err(map_error)?;
    let found = MapShape {
        kind: info.map_type().map_err(map_error)? as u32,
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
    };
    if found == spec.shape {
        return Ok(());
    }
    Err(DatapathError::Layout { path: pin.to_owned(), found, expected: spec.shape })
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
        Err(source) if source.kind() != io::ErrorKind::DirectoryNotEmpty => {
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
