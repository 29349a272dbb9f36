//! How a record is written: a fixed head, the key, the value. The position is the key of the table.

use crate::engine::{LeaseId, Position, Record, Revision};

/// First byte of every record; another layout gets another number.
const LAYOUT: u8 = 1;
const HEAD_BYTES: usize = 1 + 8 + 8 + 8 + 4;

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    /// Fewer bytes than the head and the key need.
    #[error("record is cut short")]
    Short,
    /// Written by another version.
    #[error("record layout {0} is not known")]
    Layout(u8),
    /// A key that is empty, or numbers that cannot be.
    #[error("record contradicts itself")]
    Contradiction,
}

/// The bytes of a record.
#[must_use]
pub(crate) fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + record.key.len() + record.value.len());
    bytes.push(LAYOUT);
    bytes.extend_from_slice(&record.create.0.to_le_bytes());
    bytes.extend_from_slice(&record.version.to_le_bytes());
    bytes.extend_from_slice(&record.lease.0.to_le_bytes());
    // A request is far smaller than 4 GiB.
    bytes.extend_from_slice(&u32::try_from(record.key.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&record.key);
    bytes.extend_from_slice(&record.value);
    bytes
}

/// The record of bytes found at `position`.
///
/// # Errors
/// If the bytes are not a record that [`encode`] writes.
pub(crate) fn decode(position: Position, bytes: &[u8]) -> Result<Record, CodecError> {
    let (layout, rest) = bytes.split_first().ok_or(CodecError::Short)?;
    if *layout != LAYOUT {
        return Err(CodecError::Layout(*layout));
    }
    let (create, rest) = rest.split_first_chunk::<8>().ok_or(CodecError::Short)?;
    let (version, rest) = rest.split_first_chunk::<8>().ok_or(CodecError::Short)?;
    let (lease, rest) = rest.split_first_chunk::<8>().ok_or(CodecError::Short)?;
    let (key_bytes, rest) = rest.split_first_chunk::<4>().ok_or(CodecError::Short)?;
    let key_bytes = usize::try_from(u32::from_le_bytes(*key_bytes)).map_err(|_| CodecError::Short)?;
    let (key, value) = rest.split_at_checked(key_bytes).ok_or(CodecError::Short)?;
    let record = Record {
        key: key.into(),
        value: value.into(),
        position,
        create: Revision(i64::from_le_bytes(*create)),
        version: i64::from_le_bytes(*version),
        lease: LeaseId(i64::from_le_bytes(*lease)),
    };
    let plausible = if record.version == 0 {
        record.create == Revision(0) && record.value.is_empty() && record.lease == LeaseId::NONE
    } else {
        record.version > 0 && record.create > Revision::FIRST && record.create <= position.main
    };
    if key.is_empty() || !plausible {
        return Err(CodecError::Contradiction);
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POSITION: Position = Position { main: Revision(9), sub: 2 };

    fn record() -> Record {
        Record {
            key: b"cilium/.heartbeat".as_slice().into(),
            value: b"now".as_slice().into(),
            position: POSITION,
            create: Revision(4),
            version: 3,
            lease: LeaseId(77),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let tombstone =
            Record { value: Box::default(), create: Revision(0), version: 0, lease: LeaseId::NONE, ..record() };
        for record in [record(), tombstone] {
            assert_eq!(decode(POSITION, &encode(&record)), Ok(record));
        }
    }

    #[test]
    fn damage_is_an_error() {
        let bytes = encode(&record());
        for length in 0..HEAD_BYTES + record().key.len() {
            assert_eq!(decode(POSITION, &bytes[..length]), Err(CodecError::Short), "{length} bytes");
        }
        let mut other = bytes.clone();
        other[0] = 2;
        assert_eq!(decode(POSITION, &other), Err(CodecError::Layout(2)));
        let early = Position { main: Revision(3), sub: 0 };
        assert_eq!(decode(early, &bytes), Err(CodecError::Contradiction));
    }
}
