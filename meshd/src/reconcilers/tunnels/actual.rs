//! The table that takes frames out of the tunnel, as it was seen last.

use meshd_core::id::IfIndex;

use crate::kernel::nftables::{NftError, arrivals, clamp};

/// What is known of the table.
#[derive(Debug, Default)]
pub struct Actual {
    /// The link it was hooked to when it was written.
    hooked: Option<IfIndex>,
    /// The table that clamps segments, as far as it is known.
    clamps: Option<bool>,
}

impl Actual {
    /// Has the table been needed in this run?
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.hooked.is_some()
    }

    /// Sees to it that frames of the link with this index are taken.
    ///
    /// # Errors
    /// Why they may not be.
    pub async fn keep_arrivals(&mut self, link: IfIndex) -> Result<(), String> {
        let explain = |error: NftError| format!("frames that arrive through the tunnel are not taken: {error}");
        if self.hooked.is_some_and(|hooked| hooked != link) || !arrivals::look().await.map_err(explain)? {
            arrivals::put().await.map_err(explain)?;
        }
        self.hooked = Some(link);
        Ok(())
    }

    /// Sees to it that segments are clamped, or are not.
    ///
    /// # Errors
    /// Why they may not be, or may still be.
    pub async fn keep_clamp(&mut self, wanted: bool) -> Result<(), String> {
        let explain = |error: NftError| format!("segments of TCP are not clamped as `routing.mss_clamp` says: {error}");
        if wanted {
            if !clamp::look().await.map_err(explain)? {
                clamp::put().await.map_err(explain)?;
            }
        } else if self.clamps != Some(false) {
            // Without the program, or when it may not even look, there is nothing of an earlier process either.
            if clamp::look().await.unwrap_or(false) {
                clamp::remove().await.map_err(explain)?;
            }
        }
        self.clamps = Some(wanted);
        Ok(())
    }

    /// Removes the table.
    ///
    /// # Errors
    /// Why it may still be there.
    pub async fn remove_arrivals(&mut self) -> Result<(), String> {
        self.hooked = None;
        match arrivals::remove().await {
            Ok(()) | Err(NftError::Missing) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}
