//! Every task of the daemon, by name.

use std::future::Future;

use tokio::task::{JoinError, JoinSet};

/// Tasks that run as long as the daemon. Dropping it cancels them all.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<&'static str>,
}

impl Tasks {
    /// Starts a task that is expected never to end.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until a task ends, which none should; returns what happened as text.
    pub async fn first_end(&mut self) -> String {
        match self.set.join_next().await {
            Some(Ok(name)) => format!("task {name} ended"),
            Some(Err(error)) => panic_text(error),
            None => "no task is left".to_owned(),
        }
    }

    /// Cancels all tasks and waits for them.
    pub async fn stop(mut self) {
        self.set.shutdown().await;
    }
}

fn panic_text(error: JoinError) -> String {
    let text = error.to_string();
    match error.try_into_panic() {
        Ok(panic) => {
            let words = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            format!("a task panicked: {}", words.unwrap_or(text))
        }
        Err(_) => text,
    }
}
