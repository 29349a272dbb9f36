//! Waiting for a predecessor to let go.
//!
//! A process that was killed looks dead as soon as its first thread is; its other threads may hold files and sockets for a
//! moment longer. A supervisor that starts us in that moment must not see us fail.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long a killed predecessor may hold on.
const DEADLINE: Duration = Duration::from_secs(5);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Tries until the attempt succeeds, fails for another reason than `in_use`, or the deadline has passed.
///
/// # Errors
/// Those of the last attempt.
pub async fn once_free<T, E>(attempt: impl FnMut() -> Result<T, E>, in_use: impl Fn(&E) -> bool) -> Result<T, E> {
    try_for(DEADLINE, attempt, in_use).await
}

async fn try_for<T, E>(
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
    in_use: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Err(error) if in_use(&error) && Instant::now() < deadline => sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_in_use_is_tried_again_and_not_for_ever() {
        let mut left = 3;
        let freed = once_free(
            || {
                left -= 1;
                if left == 0 { Ok(()) } else { Err("in use") }
            },
            |error| *error == "in use",
        );
        assert_eq!(freed.await, Ok(()));
        let mut tries = 0;
        let broken: Result<(), _> = once_free(
            || {
                tries += 1;
                Err("broken")
            },
            |error| *error == "in use",
        )
        .await;
        assert_eq!((broken, tries), (Err("broken"), 1));
        let held: Result<(), _> = try_for(PAUSE * 3, || Err("in use"), |error| *error == "in use").await;
        assert_eq!(held, Err("in use"));
    }
}
