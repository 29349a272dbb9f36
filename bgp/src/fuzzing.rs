//! What the fuzz targets run, as ordinary functions.
//!
//! A target in `fuzz/` only calls one of these, and the test below feeds the committed corpus to the same functions on the
//! stable toolchain. Each returns normally for every input or panics on a broken promise.

use crate::wire::header::{HEADER_LEN, LengthLimit, next_frame};

/// Cuts `data` into messages until it is incomplete or refused. The first octet chooses the length limit.
///
/// # Panics
///
/// When the parts of a frame are not the octets it was cut from, or when a refusal has no NOTIFICATION of at most two
/// data octets.
pub fn header(data: &[u8]) {
    let Some((choice, mut stream)) = data.split_first() else {
        return;
    };
    let limit = if choice & 1 == 0 { LengthLimit::Standard } else { LengthLimit::Extended };
    loop {
        match next_frame(stream, limit) {
            Ok(Some(frame)) => {
                let (header, after) = stream.split_at(HEADER_LEN);
                assert_eq!(frame.header.encode().as_slice(), header);
                assert_eq!(frame.body.len() + frame.rest.len(), after.len());
                stream = frame.rest;
            }
            Ok(None) => return,
            Err(error) => {
                assert!(error.notification().data.len() <= 2);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Feeds every file of a target's corpus to its function.
    fn replay(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).expect("the corpus is committed") {
            let path = entry.expect("a folder entry").path();
            run(&fs::read(&path).expect("a readable input"));
            inputs += 1;
        }
        assert!(inputs > 0, "{} is empty", folder.display());
    }

    #[test]
    fn corpus_of_header() {
        replay("header", super::header);
    }
}
