//! `meshd config-reference` (hidden): the text of `docs/reference/config.md`.

use super::failure::Failure;
use super::output;
use crate::config::reference;

pub(super) fn run() -> Result<(), Failure> {
    output::text(&reference::markdown())
}
