//! What was looked at and what came of it.

use std::fmt::Write as _;

use serde::Serialize;

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// As it should be.
    Ok,
    /// Works, but somebody should look at it.
    Warning,
    /// Does not work.
    Failed,
    /// Could not be looked at, because of something that failed before.
    Skipped,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    /// `certificate`, `dns`, `tcp`, `tls`, `version`, `access`, `store`, `clock`, `cluster_config` or `canaries`.
    pub(super) check: &'static str,
    /// What was looked at: a file, an endpoint, a key.
    pub(super) target: String,
    /// What came of it.
    pub(super) outcome: Outcome,
    /// What was found.
    pub(super) detail: String,
    /// The likely cause of a failure.
    pub(super) cause: Option<String>,
    /// What to do.
    pub(super) hint: Option<String>,
}

/// A failure in words: what was found, the likely cause, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Diagnosis {
    pub(super) detail: String,
    pub(super) cause: String,
    pub(super) hint: String,
}

impl Diagnosis {
    pub(super) fn new(detail: impl Into<String>, cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { detail: detail.into(), cause: cause.into(), hint: hint.into() }
    }
}

/// The checks of one remote cluster, or of the own store.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// The cluster.
    pub(super) cluster: String,
    /// Is it the store of the own cluster?
    pub(super) own_store: bool,
    /// The file that configures it.
    pub(super) source: String,
    /// Did no check fail?
    pub(super) ok: bool,
    /// The checks in the order they were made.
    pub(super) checks: Vec<Check>,
}

impl Report {
    pub(super) fn new(cluster: String, own_store: bool, source: String) -> Self {
        Self { cluster, own_store, source, ok: true, checks: Vec::new() }
    }

    pub(super) fn ok(&mut self, check: &'static str, target: impl Into<String>, detail: impl Into<String>) {
        self.push(check, target.into(), Outcome::Ok, detail.into(), None);
    }

    pub(super) fn skip(&mut self, check: &'static str, target: impl Into<String>, detail: impl Into<String>) {
        self.push(check, target.into(), Outcome::Skipped, detail.into(), None);
    }

    pub(super) fn warn(&mut self, check: &'static str, target: impl Into<String>, diagnosis: Diagnosis) {
        self.push(check, target.into(), Outcome::Warning, diagnosis.detail.clone(), Some(diagnosis));
    }

    pub(super) fn fail(&mut self, check: &'static str, target: impl Into<String>, diagnosis: Diagnosis) {
        self.ok = false;
        self.push(check, target.into(), Outcome::Failed, diagnosis.detail.clone(), Some(diagnosis));
    }

    fn push(
        &mut self,
        check: &'static str,
        target: String,
        outcome: Outcome,
        detail: String,
        diagnosis: Option<Diagnosis>,
    ) {
        let (cause, hint) = diagnosis.map_or((None, None), |diagnosis| (Some(diagnosis.cause), Some(diagnosis.hint)));
        self.checks.push(Check { check, target, outcome, detail, cause, hint });
    }
}

/// The reports as a page for people.
pub(super) fn page(reports: &[Report]) -> String {
    let mut page = String::new();
    for (i, report) in reports.iter().enumerate() {
        let what = if report.own_store { "own store of cluster" } else { "cluster" };
        let gap = if i == 0 { "" } else { "\n" };
        let _ = writeln!(page, "{gap}{what} {} ({})", report.cluster, report.source);
        for check in &report.checks {
            let outcome = match check.outcome {
                Outcome::Ok => "ok",
                Outcome::Warning => "WARNING",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
            };
            let _ = writeln!(page, "  {outcome:<8} {:<15} {}: {}", check.check, check.target, check.detail);
            for (word, text) in [("cause", &check.cause), ("hint", &check.hint)] {
                if let Some(text) = text {
                    let _ = writeln!(page, "           {word}: {text}");
                }
            }
        }
    }
    if reports.is_empty() {
        page.push_str("no remote cluster is configured\n");
    }
    page
}
