//! Steps at the kernel: replace, change, remove; each is one transaction and may be repeated.

use meshd_core::plan::MasqueradeStep;

use crate::kernel::nftables::Listing;

/// The replacement that leads where a refused change was to lead: somebody who changed the sets can make a change
/// impossible. `None` for steps that are no change.
#[must_use]
pub fn whole(step: &MasqueradeStep, table: Option<&Listing>) -> Option<MasqueradeStep> {
    let MasqueradeStep::Change { add, remove } = step else { return None };
    let mut exclusions = table.map(|listing| listing.exclusions.clone()).unwrap_or_default();
    exclusions.retain(|exclusion| !remove.contains(exclusion));
    exclusions.extend(add.iter().copied());
    Some(MasqueradeStep::Replace(exclusions))
}

/// A step in words.
#[must_use]
pub fn describe(step: &MasqueradeStep) -> String {
    match step {
        MasqueradeStep::Replace(exclusions) => {
            format!("replace table inet meshd whole, {} exclusions", exclusions.len())
        }
        MasqueradeStep::Change { add, remove } => {
            format!("replace table inet meshd exclusions, {} added, {} removed", add.len(), remove.len())
        }
        MasqueradeStep::Remove => "delete table inet meshd".to_owned(),
    }
}
