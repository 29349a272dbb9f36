//! Passwords and keys, which stand in files of their own.
//!
//! A secret that is missing, empty or readable by everybody is an error and never no secret: a session that was meant to
//! be signed must not run unsigned.

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Longest secret: what the kernel takes for TCP-MD5 and TCP-AO.
pub const SECRET_OCTETS_MAX: usize = 80;

/// Permission bits: everybody may read or write.
const WORLD: u32 = 0o006;

/// A secret. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Its octets.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Why a file gives no secret.
#[derive(Debug, Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("failed to read the secret {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not only the owner's.
    #[error("the secret {} can be read or changed by everybody", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// Its first line is empty.
    #[error("the first line of {} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It does not fit into the kernel's key.
    #[error("the secret {} is longer than {SECRET_OCTETS_MAX} octets", path.display())]
    Long {
        /// The file.
        path: PathBuf,
    },
}

impl SecretError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { path, source } if source.kind() == io::ErrorKind::NotFound => {
                format!("write the password into {} (chmod 0600), or correct the path", path.display())
            }
            Self::Read { path, .. } => format!("it must be a file that this user can read (ls -l {})", path.display()),
            Self::Exposed { path } => {
                format!("chmod 0600 {} (in a Kubernetes volume: defaultMode: 0400)", path.display())
            }
            Self::Empty { path } => format!("write the password into the first line of {}", path.display()),
            Self::Long { .. } => "choose a shorter one on both sides".to_owned(),
        }
    }
}

/// Reads the first line of a file.
///
/// # Errors
/// When there is no secret in it, or when it is everybody's.
pub fn read(path: &Path) -> Result<Secret, SecretError> {
    let failed = |source| SecretError::Read { path: path.to_owned(), source };
    // Opening anything but a file, a pipe for instance, may wait for ever.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a file")));
    }
    let file = fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.permissions().mode() & WORLD != 0 {
        return Err(SecretError::Exposed { path: path.to_owned() });
    }
    let mut content = Vec::new();
    // Room for an end of line, and for one octet too many.
    file.take(SECRET_OCTETS_MAX as u64 + 3).read_to_end(&mut content).map_err(failed)?;
    let line = content.split(|octet| *octet == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line.len() {
        0 => Err(SecretError::Empty { path: path.to_owned() }),
        1..=SECRET_OCTETS_MAX => Ok(Secret(line.to_vec())),
        _ => Err(SecretError::Long { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_the_first_line_of_a_private_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let put = |content: &[u8], mode| {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            read(&path)
        };
        assert_eq!(put(b"hunter2\nmore\n", 0o600).unwrap().octets(), b"hunter2");
        assert_eq!(put(b"hunter2\r\n", 0o640).unwrap().octets(), b"hunter2");
        assert_eq!(put(&[b'x'; 80], 0o400).unwrap().octets().len(), 80);
        assert!(matches!(put(&[b'x'; 81], 0o600), Err(SecretError::Long { .. })));
        assert!(matches!(put(b"\nx", 0o600), Err(SecretError::Empty { .. })));
        assert!(matches!(put(b"hunter2", 0o644), Err(SecretError::Exposed { .. })));
        assert!(matches!(put(b"hunter2", 0o602), Err(SecretError::Exposed { .. })));
        let missing = folder.path().join("missing");
        assert!(matches!(read(&missing), Err(SecretError::Read { .. })));
        assert!(matches!(read(folder.path()), Err(SecretError::Read { .. })));
        assert!(!format!("{:?}", put(b"hunter2", 0o600).unwrap()).contains("hunter2"));
    }
}
