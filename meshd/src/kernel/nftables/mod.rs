//! The packet filter: one table of ours, written and read through `nft`.
//!
//! ```text
//!  step ── document ──► nft -j -f - ──► one transaction ──► kernel
//!  held ◄── listing ◄── nft -j list table inet meshd ◄───────┘
//!  look again ◄── watch ◄── nfnetlink notifications that name our table
//! ```
//!
//! The table is `inet meshd` and everything in it is ours; no other is ever named. It holds interval sets (`own4`, `pods4`,
//! `nodes4`, `kept4`, the same for IPv6), a set of link names, and one nat chain in front of everybody else's. In the nat hook
//! of the kernel the first chain that decides about a connection ends the walk, so what is to keep its source is "translated"
//! to the source it has ([`document`]), and a foreign masquerade rule is not asked.
//!
//! What is ugly: `nft` reads the sets back before it changes them, so one more exclusion among 10,000 costs 40 ms of a
//! processor, and reading the table 70 ms. Whoever calls here coalesces.

pub mod arrivals;
pub mod clamp;
pub mod document;
pub mod listing;
pub mod watch;

use std::{
    io,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use futures_util::future::BoxFuture;
use meshd_core::{desired::MasqueradeRules, plan::MasqueradeStep};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

pub use listing::Listing;

/// Our table.
pub const TABLE: &str = "meshd";
/// Where `nft` may be: the search path of a daemon does not always have the folders of administrators.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];
/// How long one run may take; a table of 16,384 exclusions takes a fifth of a second.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Writes and reads the table.
pub trait KernelMasquerade: Send + Sync + 'static {
    /// What the kernel holds; `None` without a table.
    fn look(&self) -> BoxFuture<'_, Result<Option<Listing>, NftError>>;

    /// Does one step, all of it or nothing. `rules` are those of the table that a replacement makes.
    fn carry_out<'a>(
        &'a self,
        step: &'a MasqueradeStep,
        rules: &'a MasqueradeRules,
    ) -> BoxFuture<'a, Result<(), NftError>>;
}

/// Why the table cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NftError {
    /// There is no program.
    #[error("the program nft is not there; install the package nftables")]
    Missing,
    /// It could not be run.
    #[error("failed to run nft: {0}")]
    Run(String),
    /// It did not end.
    #[error("nft did not end within {} s", TIME_MAX.as_secs())]
    Slow,
    /// It refused.
    #[error("nft refused to {operation}: {reason}; {}", hint(reason))]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// The first line of what it said.
        reason: String,
    },
    /// What it printed is not what it prints.
    #[error("nft printed what cannot be read: {0}; see `nft -j list table inet {TABLE}`")]
    Unreadable(String),
}

/// What to do about a refusal.
fn hint(reason: &str) -> &'static str {
    if reason.contains("not permitted") {
        "meshd needs CAP_NET_ADMIN"
    } else if reason.contains("not supported") || reason.contains("No such file") {
        "the kernel needs nf_tables with nat (CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NF_TABLES_INET)"
    } else {
        "see `nft list table inet meshd`"
    }
}

/// The real `nft`, in the network namespace of the process.
#[derive(Debug, Default)]
pub struct Nft;

impl KernelMasquerade for Nft {
    fn look(&self) -> BoxFuture<'_, Result<Option<Listing>, NftError>> {
        Box::pin(async {
            let operation = "list the table";
            let output = run(&["-j", "list", "table", "inet", TABLE], Vec::new()).await?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return if said.contains("No such file or directory") {
                    Ok(None)
                } else {
                    Err(NftError::Refused { operation, reason: first_line(&said) })
                };
            }
            listing::read(&output.stdout).map(Some).map_err(NftError::Unreadable)
        })
    }

    fn carry_out<'a>(
        &'a self,
        step: &'a MasqueradeStep,
        rules: &'a MasqueradeRules,
    ) -> BoxFuture<'a, Result<(), NftError>> {
        Box::pin(async move {
            if let Some(document) = document::in_place(step, rules)
                && self.is_ours_alone().await?
            {
                let document = serde_json::to_vec(&document).map_err(|error| NftError::Run(error.to_string()))?;
                // What is refused has another shape than ours: it is replaced as a whole.
                if run(&["-j", "-f", "-"], document).await?.status.success() {
                    return Ok(());
                }
            }
            let document =
                serde_json::to_vec(&document::of(step, rules)).map_err(|error| NftError::Run(error.to_string()))?;
            let output = run(&["-j", "-f", "-"], document).await?;
            if output.status.success() {
                return Ok(());
            }
            let operation = match step {
                MasqueradeStep::Replace(_) => "put the table in its place",
                MasqueradeStep::Change { .. } => "change the exclusions",
                MasqueradeStep::Remove => "remove the table",
            };
            Err(NftError::Refused { operation, reason: first_line(&String::from_utf8_lossy(&output.stderr)) })
        })
    }
}

impl Nft {
    /// True when there is a table of ours with nothing in it that somebody else put there, but rules.
    async fn is_ours_alone(&self) -> Result<bool, NftError> {
        let output = run(&["-j", "list", "table", "inet", TABLE], Vec::new()).await?;
        let listed = serde_json::from_slice(&output.stdout);
        Ok(output.status.success() && listed.is_ok_and(|listed| document::is_ours_alone(&listed)))
    }
}

fn first_line(said: &str) -> String {
    said.lines().next().unwrap_or("it said nothing").trim().to_owned()
}

/// Runs `nft` with the words, gives it the input and returns what it said. A run that takes too long, or that nobody waits for
/// any more, is killed; the kernel takes a transaction whole or not at all.
async fn run(words: &[&str], input: Vec<u8>) -> Result<Output, NftError> {
    for program in PROGRAMS {
        let child = Command::new(program)
            .args(words)
            .env("LC_ALL", "C")
            .current_dir(Path::new("/"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(NftError::Run(error.to_string())),
        };
        let stdin = child.stdin.take();
        let write = async {
            if let Some(mut stdin) = stdin {
                // A program that ends early says why itself.
                let _ended = stdin.write_all(&input).await;
            }
        };
        let both = async { tokio::join!(write, child.wait_with_output()).1 };
        return match timeout(TIME_MAX, both).await {
            Ok(output) => output.map_err(|error| NftError::Run(error.to_string())),
            Err(_) => Err(NftError::Slow),
        };
    }
    Err(NftError::Missing)
}
