//! What the kernel holds, and whether its rules are those we wrote.

use meshd_core::{
    desired::{Exclusion, MasqueradeRules},
    plan::{HeldMasquerade, MasqueradeStep},
};

use crate::kernel::nftables::{Listing, NftError, document};

/// The table as last seen.
#[derive(Debug, Clone, Default)]
pub struct Actual {
    /// `None` before the first look and after a failure; inside, `None` without a table.
    listing: Option<Option<Listing>>,
    /// The shape of a table whose rules carry these comments. The first one that is seen is believed: the comments were
    /// written in the same transaction as the rules, and whoever changes rules later changes the shape.
    known: Option<(Vec<String>, String)>,
}

impl Actual {
    /// Takes over what was seen.
    pub fn seen(&mut self, listing: Option<Listing>) {
        if let Some(listing) = &listing {
            let is_ours = !listing.comments.is_empty() && listing.comments.iter().all(|comment| !comment.is_empty());
            let is_new = self.known.as_ref().is_none_or(|(comments, _)| *comments != listing.comments);
            if is_ours && is_new {
                self.known = Some((listing.comments.clone(), listing.shape.clone()));
            }
        }
        self.listing = Some(listing);
    }

    /// Takes over what was done, until the next look. A table that was replaced has to be seen first.
    pub fn done(&mut self, step: MasqueradeStep) {
        match (step, &mut self.listing) {
            (MasqueradeStep::Change { add, remove }, Some(Some(listing))) => {
                for exclusion in &remove {
                    listing.exclusions.remove(exclusion);
                }
                listing.exclusions.extend(add);
            }
            (MasqueradeStep::Remove, listing) => *listing = Some(None),
            (MasqueradeStep::Replace(_) | MasqueradeStep::Change { .. }, _) => self.forget(),
        }
    }

    /// What is there is not known any more.
    pub fn forget(&mut self) {
        self.listing = None;
    }

    /// Is it known what is there?
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.listing.is_some()
    }

    /// What a table with these rules is compared with: `None` without a table.
    #[must_use]
    pub fn held(&self, rules: &MasqueradeRules) -> Option<HeldMasquerade> {
        let listing = self.listing.as_ref()?.as_ref()?;
        let comments = document::comments(rules);
        let rules_fit = listing.comments == comments
            && self.known.as_ref().is_some_and(|(of, shape)| *of == comments && *shape == listing.shape);
        Some(HeldMasquerade { rules_fit, exclusions: listing.exclusions.clone() })
    }

    /// After a replacement: what was seen is what was written.
    ///
    /// # Errors
    /// When the table that was just written has other rules.
    pub fn trust(&mut self, rules: &MasqueradeRules) -> Result<(), NftError> {
        let Some(Some(listing)) = &self.listing else { return Ok(()) };
        let comments = document::comments(rules);
        if listing.comments != comments {
            return Err(NftError::Unreadable("the rules that were just written are not there".to_owned()));
        }
        self.known = Some((comments, listing.shape.clone()));
        Ok(())
    }

    /// Is this prefix excluded at the kernel?
    #[must_use]
    pub fn excludes(&self, exclusion: &Exclusion) -> bool {
        self.table().is_some_and(|listing| listing.exclusions.contains(exclusion))
    }

    /// The table as last seen.
    #[must_use]
    pub fn table(&self) -> Option<&Listing> {
        self.listing.as_ref()?.as_ref()
    }
}
