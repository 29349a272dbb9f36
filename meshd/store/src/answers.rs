//! Memory of answers under way: what was copied out of the engine and not yet written to a connection.
//!
//! A client decides how fast it reads, and one connection carries a thousand requests, each of which may ask for
//! everything. So room is taken before an answer is copied and given back when its last byte has been handed to the
//! connection or thrown away with it ([`Hold`]). Who finds no room waits, per user in order and for a bounded time.
//!
//! The room is shared by a rule without a number for each user: with the answer asked for, a user may hold no more than
//! stays free for all others. One user alone gets half, a second one half of the rest, and nobody takes the last of it.
//! An answer that is larger than that half could never be given, so such answers have one place of their own, outside
//! the room: one of them is under way at a time, and the others are not held up by it.
//!
//! What is ugly: bytes are an estimate, [`Record::cost_bytes`](crate::engine::Record::cost_bytes) for each record. The
//! encoder's buffer grows by doubling, so an answer of few large values can take nearly twice of it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tonic::Status;

/// Default bound of the memory of answers under way.
pub const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Default bound of the time a request waits for room. Shorter than the five seconds after which clients commonly give
/// up, so that they hear why.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(3);
/// Most requests of one user that wait for room. Thousands of nodes of a remote cluster share its user.
const WAITING_PER_USER_MAX: usize = 10_000;
/// Most answers beyond half of the room that wait for their place.
const WAITING_LARGE_MAX: usize = 1_000;

/// No room in time. Unavailable, because etcd's clients try a read again, after a pause, for this code only.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoom {
    #[error(
        "etcdserver: no room for an answer of {bytes} bytes: answers to user {user} that have not been read hold {held} \
         bytes, all together {all}; read them or end them, or ask for less at once with a limit"
    )]
    Full { user: Arc<str>, bytes: usize, held: usize, all: usize },
    #[error(
        "etcdserver: no room for an answer of {bytes} bytes while another one of that size is under way; ask for less \
         at once with a limit"
    )]
    Large { bytes: usize },
}

impl From<NoRoom> for Status {
    fn from(error: NoRoom) -> Self {
        Self::unavailable(error.to_string())
    }
}

/// Figures for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AnswerFigures {
    pub(crate) bytes: usize,
    pub(crate) waiting: usize,
    pub(crate) refused: u64,
}

/// All answers under way.
#[derive(Debug)]
pub(crate) struct Answers {
    bytes_max: usize,
    wait_max: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of the room that are taken.
    held: usize,
    /// Users that hold room or wait for it.
    users: BTreeMap<Arc<str>, User>,
    /// The user served last, so that the next one has its turn.
    served: Option<Arc<str>>,
    /// Bytes of the large answer under way.
    large: Option<usize>,
    large_waiting: VecDeque<Waiting>,
    refused: u64,
}

#[derive(Debug, Default)]
struct User {
    held: usize,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    user: Arc<str>,
    bytes: usize,
    granted: oneshot::Sender<Hold>,
}

/// Room for one answer; given back when dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    /// None once there is nothing to give back.
    answers: Option<Arc<Answers>>,
    user: Arc<str>,
    bytes: usize,
    large: bool,
}

impl Answers {
    /// Nothing under way.
    pub(crate) fn new(bytes_max: usize, wait_max: Duration) -> Self {
        Self { bytes_max, wait_max, state: Mutex::default() }
    }

    /// How much is held.
    pub(crate) fn figures(&self) -> AnswerFigures {
        let state = self.state();
        let waiting: usize = state.users.values().map(|user| user.waiting.len()).sum();
        AnswerFigures {
            bytes: state.held + state.large.unwrap_or(0),
            waiting: waiting + state.large_waiting.len(),
            refused: state.refused,
        }
    }

    /// Takes room if there is some now and nobody waits for it.
    pub(crate) fn try_take(self: &Arc<Self>, user: &Arc<str>, bytes: usize) -> Option<Hold> {
        let mut state = self.state();
        if self.is_large(bytes) {
            return (state.large_waiting.is_empty()).then(|| state.grant(self, user, bytes)).flatten();
        }
        let waits = state.users.get(user).is_some_and(|user| !user.waiting.is_empty());
        if waits { None } else { state.grant(self, user, bytes) }
    }

    /// Takes room, and waits for it behind those who came earlier.
    ///
    /// # Errors
    /// If there is none in time.
    pub(crate) async fn take(self: &Arc<Self>, user: &Arc<str>, bytes: usize) -> Result<Hold, NoRoom> {
        if let Some(hold) = self.try_take(user, bytes) {
            return Ok(hold);
        }
        // Declared first, so that it is dropped after the receiver: who waited behind a request that ended may fit.
        let _leaving = Leaving(self);
        let (granted, mut grant) = oneshot::channel();
        let is_waiting = {
            let mut state = self.state();
            let is_waiting = state.wait(self.is_large(bytes), Waiting { user: Arc::clone(user), bytes, granted });
            // Requests that have ended no longer stand in front of this one.
            state.serve(self);
            is_waiting
        };
        if !is_waiting {
            return Err(self.refuse(user, bytes));
        }
        if let Ok(Ok(hold)) = tokio::time::timeout(self.wait_max, &mut grant).await {
            return Ok(hold);
        }
        grant.close();
        // It may have come in the last moment.
        if let Ok(hold) = grant.try_recv() {
            return Ok(hold);
        }
        Err(self.refuse(user, bytes))
    }

    fn refuse(&self, user: &Arc<str>, bytes: usize) -> NoRoom {
        let mut state = self.state();
        state.refused += 1;
        let held = state.users.get(user).map_or(0, |user| user.held);
        let error = if self.is_large(bytes) {
            NoRoom::Large { bytes }
        } else {
            NoRoom::Full { user: Arc::clone(user), bytes, held, all: state.held }
        };
        drop(state);
        tracing::debug!(%user, bytes, held, "no room for an answer");
        error
    }

    fn is_large(&self, bytes: usize) -> bool {
        bytes > self.bytes_max / 2
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waited, however its wait ends.
struct Leaving<'a>(&'a Arc<Answers>);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.state().serve(self.0);
    }
}

impl State {
    /// True if the user may hold this much more.
    fn fits(&self, user: &str, bytes: usize, bytes_max: usize) -> bool {
        let held = self.users.get(user).map_or(0, |user| user.held);
        held + bytes <= bytes_max.saturating_sub(self.held + bytes)
    }

    fn grant(&mut self, answers: &Arc<Answers>, user: &Arc<str>, bytes: usize) -> Option<Hold> {
        let large = answers.is_large(bytes);
        if large {
            if self.large.is_some() {
                return None;
            }
            self.large = Some(bytes);
        } else {
            if !self.fits(user, bytes, answers.bytes_max) {
                return None;
            }
            self.held += bytes;
            self.users.entry(Arc::clone(user)).or_default().held += bytes;
        }
        Some(Hold { answers: Some(Arc::clone(answers)), user: Arc::clone(user), bytes, large })
    }

    /// Puts a request into its queue, false if that is full.
    fn wait(&mut self, large: bool, waiting: Waiting) -> bool {
        let (queue, max) = if large {
            (&mut self.large_waiting, WAITING_LARGE_MAX)
        } else {
            let user = self.users.entry(Arc::clone(&waiting.user)).or_default();
            (&mut user.waiting, WAITING_PER_USER_MAX)
        };
        drop_gone(queue);
        let room = queue.len() < max;
        if room {
            queue.push_back(waiting);
        }
        room
    }

    fn give_back(&mut self, answers: &Arc<Answers>, user: &str, bytes: usize, large: bool) {
        if large {
            self.large = None;
        } else {
            self.held -= bytes;
            if let Some(user) = self.users.get_mut(user) {
                user.held -= bytes;
            }
        }
        self.serve(answers);
    }

    /// Gives room to those who wait, one of each user in turn.
    fn serve(&mut self, answers: &Arc<Answers>) {
        drop_gone(&mut self.large_waiting);
        while self.large.is_none()
            && let Some(waiting) = self.large_waiting.pop_front()
        {
            self.hand_over(answers, waiting);
        }
        for user in self.users.values_mut() {
            drop_gone(&mut user.waiting);
        }
        self.users.retain(|_, user| user.held > 0 || !user.waiting.is_empty());
        while let Some(name) = self.next_user(answers.bytes_max) {
            let waiting = self.users.get_mut(&name).and_then(|user| user.waiting.pop_front());
            self.served = Some(name);
            if let Some(waiting) = waiting {
                self.hand_over(answers, waiting);
            }
        }
    }

    /// The first user after the one served last whose first request fits.
    fn next_user(&self, bytes_max: usize) -> Option<Arc<str>> {
        let after = self.served.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let up_to = self.served.clone().map_or(Bound::Unbounded, Bound::Included);
        let rest = self.users.range((after, Bound::Unbounded));
        let wrapped = self.served.is_some().then(|| self.users.range((Bound::Unbounded, up_to)));
        let ready = |(name, user): &(&Arc<str>, &User)| {
            user.waiting.front().is_some_and(|waiting| self.fits(name, waiting.bytes, bytes_max))
        };
        rest.chain(wrapped.into_iter().flatten()).find(ready).map(|(name, _)| Arc::clone(name))
    }

    fn hand_over(&mut self, answers: &Arc<Answers>, waiting: Waiting) {
        let Some(hold) = self.grant(answers, &waiting.user, waiting.bytes) else {
            return;
        };
        // The request may have ended meanwhile. Its hold cannot be dropped here, under the lock that dropping takes.
        if let Err(mut unwanted) = waiting.granted.send(hold) {
            unwanted.answers = None;
            if unwanted.large {
                self.large = None;
            } else {
                self.held -= unwanted.bytes;
                if let Some(user) = self.users.get_mut(&unwanted.user) {
                    user.held -= unwanted.bytes;
                }
            }
        }
    }
}

impl Hold {
    /// Counts what the answer really takes: between measuring and copying it a write may have come.
    pub(crate) fn resize(&mut self, bytes: usize) {
        let Some(answers) = &self.answers else {
            return;
        };
        let mut state = answers.state();
        if self.large {
            state.large = Some(bytes);
        } else {
            state.held = state.held - self.bytes + bytes;
            let user = state.users.entry(Arc::clone(&self.user)).or_default();
            user.held = user.held - self.bytes + bytes;
        }
        state.serve(answers);
        self.bytes = bytes;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(answers) = self.answers.take() {
            answers.state().give_back(&answers, &self.user, self.bytes, self.large);
        }
    }
}

/// Forgets requests at the front that have ended. All wait equally long, so they end from the front.
fn drop_gone(queue: &mut VecDeque<Waiting>) {
    while queue.front().is_some_and(|waiting| waiting.granted.is_closed()) {
        queue.pop_front();
    }
}

#[cfg(test)]
mod tests;
