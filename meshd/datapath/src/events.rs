//! The ring of flow events, as somebody reads it who runs now and then.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::maps::{Map, MapData, RingBuf};
use meshd_abi::FlowEvent;

use crate::{DatapathError, generation};

/// The reading end of the ring. There is one position for all who read it, so only one may.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    /// Opens the pinned ring below the folder of [`crate::Programs::load`].
    ///
    /// # Errors
    /// When there is none, or it cannot be opened.
    pub fn open(folder: &Path) -> Result<Self, DatapathError> {
        let error = |source| DatapathError::Map { map: "EVENTS", source: Box::new(source) };
        let map = MapData::from_pin(generation::existing(folder)?.path.join("EVENTS")).map_err(error)?;
        Ok(Self { ring: RingBuf::try_from(Map::RingBuf(map)).map_err(error)? })
    }

    /// Takes the oldest record out; `None` when there is none.
    pub fn take(&mut self) -> Option<FlowEvent> {
        loop {
            let record = self.ring.next()?;
            if record.len() == size_of::<FlowEvent>() {
                // SAFETY: the record is as long as the type, of which any bytes are a value.
                return Some(unsafe { record.as_ptr().cast::<FlowEvent>().read_unaligned() });
            }
            // Nothing of ours: programs of this layout version write nothing else.
        }
    }
}

/// Becomes readable when the programs say so, which they do with every so many records only.
impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
