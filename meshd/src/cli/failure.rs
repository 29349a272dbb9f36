//! Why a verb failed, and how that is said: one line per error, then what to do.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use crate::config::error::chain;
use crate::config::{ConfigErrors, Finding};

/// Exit code of a failure.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code of a wrong command line or configuration (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;

/// Why a verb failed.
#[derive(Debug)]
pub enum Failure {
    /// The configuration is wrong; exit 64.
    Config(ConfigErrors),
    /// The command line is wrong; exit 64.
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// Something went wrong; exit 1.
    Failed {
        /// The chain of causes.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The result is already printed and says no; exit 1.
    Negative,
    /// The reader of our output went away; exit 0.
    OutputClosed,
}

impl Failure {
    /// A failure with its chain of causes.
    pub fn new(error: &dyn Error) -> Self {
        Self::Failed { message: chain(error), hint: None }
    }

    /// A failure in words.
    pub fn message(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: hint.into() }
    }

    /// Adds what to do; only failures without one take it.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        match self {
            Self::Failed { message, hint: None } => Self::Failed { message, hint: Some(hint.into()) },
            other => other,
        }
    }

    /// Prints it and gives the exit code.
    pub(super) fn report(self) -> ExitCode {
        match self {
            Self::Config(errors) => {
                for finding in errors.findings() {
                    print_finding("error", finding);
                }
                ExitCode::from(EXIT_USAGE)
            }
            Self::Usage { message, hint } => {
                print("error", &message, Some(&hint));
                ExitCode::from(EXIT_USAGE)
            }
            Self::Failed { message, hint } => {
                print("error", &message, hint.as_deref());
                ExitCode::from(EXIT_FAILURE)
            }
            Self::Negative => ExitCode::from(EXIT_FAILURE),
            Self::OutputClosed => ExitCode::SUCCESS,
        }
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self::Config(errors)
    }
}

/// Failing to write the result.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::message(format!("failed to write the result: {error}"))
        }
    }
}

/// Prints a finding to standard error.
pub(super) fn print_finding(level: &str, finding: &Finding) {
    print(level, &finding.to_string(), finding.hint.as_deref());
}

fn print(level: &str, message: &str, hint: Option<&str>) {
    use io::Write;
    let mut stderr = io::stderr().lock();
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(stderr, "{level}: {message}");
    if let Some(hint) = hint {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}
