//! The thread that writes: actions in, failures out.
//!
//! The kernel works through a send before `send` returns, so after it all answers are waiting already: encoding, sending
//! and collecting take turns on one thread, and the cost besides the kernel's own is the encoding (some tens of
//! nanoseconds a route) and one receive a batch. Callers overlap their planning with it by submitting batches ahead.

use meshd_core::plan::Action;
use nix::errno::Errno;
use tokio::sync::{mpsc, oneshot};

use super::{
    Shared,
    encode::Batch,
    socket::{RECEIVE_LEN, RouteSocket, answer, frames},
    wire::NLMSG_ERROR,
};
use crate::kernel::{Failure, KernelError, Refusal};

/// Most messages in one send. More gain nothing, fewer pay for the extra system calls.
pub(crate) const MESSAGES_PER_SEND: usize = 512;
/// Bytes after which a send is closed early (routes with many next hops).
const SEND_LEN_MAX: usize = 256 * 1024;
/// Send buffer: a single send must fit, and the last message may overshoot by an attribute of 64 KiB.
const SEND_BUFFER: usize = 1024 * 1024;
/// Receive buffer: room for a refusal of every message of a send, at about 1.5 KiB of kernel memory each.
const ANSWER_BUFFER: usize = 2 * 1024 * 1024;
/// The kernel answers within a send; this long without an answer means that it was dropped.
const ANSWER_TIMEOUT_S: i64 = 10;

/// One submitted batch.
pub(super) struct Job {
    pub(super) actions: Vec<Action>,
    pub(super) done: oneshot::Sender<Vec<Failure>>,
}

/// Owner of the socket for writes.
pub(super) struct Writer {
    socket: RouteSocket,
    batch: Batch,
    answers: Vec<u8>,
    seq: u32,
}

impl Writer {
    /// Opens the socket in the calling thread's namespace.
    pub(super) fn open() -> Result<Self, KernelError> {
        let socket = RouteSocket::open()?;
        socket.set_ext_ack()?;
        socket.set_send_buffer(SEND_BUFFER)?;
        socket.set_receive_buffer(ANSWER_BUFFER)?;
        socket.set_receive_timeout(ANSWER_TIMEOUT_S)?;
        let batch = Batch::with_capacity(SEND_LEN_MAX);
        Ok(Self { socket, batch, answers: vec![0; RECEIVE_LEN], seq: 0 })
    }

    /// Port the kernel names in notifications of our writes.
    pub(super) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Works until the last sender is dropped.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>, shared: &Shared) {
        while let Some(job) = jobs.blocking_recv() {
            let count = job.actions.len();
            let failures = self.write(&job.actions);
            shared.written(count);
            // A caller that stopped waiting finds out from the next dump.
            let _ = job.done.send(failures);
        }
    }

    /// Carries out the actions in order and returns the failures.
    fn write(&mut self, actions: &[Action]) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut start = 0;
        while start < actions.len() {
            let end = self.fill(actions, start, &mut failures);
            self.flush(actions, start..end, &mut failures);
            start = end;
        }
        failures
    }

    /// Encodes from `start` on until the send is full; returns the index behind the last action taken. The sequence number
    /// of an action is its distance from `start`, counted from `self.seq`.
    fn fill(&mut self, actions: &[Action], start: usize, failures: &mut Vec<Failure>) -> usize {
        self.batch.clear();
        let mut seq = self.seq;
        for (index, action) in actions.iter().enumerate().skip(start) {
            if index - start == MESSAGES_PER_SEND || self.batch.len() >= SEND_LEN_MAX {
                return index;
            }
            if let Err(reason) = self.batch.push(action, seq) {
                failures.push(Failure { index, action: action.clone(), reason });
            }
            seq = seq.wrapping_add(1);
        }
        actions.len()
    }

    /// Sends the batch and collects its answers.
    fn flush(&mut self, actions: &[Action], range: std::ops::Range<usize>, failures: &mut Vec<Failure>) {
        let first_seq = self.seq;
        self.seq = self.seq.wrapping_add(u32::try_from(range.len()).expect("a send has at most 512 messages"));
        if self.batch.is_empty() {
            return;
        }
        let known = failures.len();
        let sent = send_whole(&self.socket, self.batch.finish());
        let collected = sent.and_then(|()| self.collect(first_seq, &actions[range.clone()], range.start, failures));
        if let Err(errno) = collected {
            tracing::warn!(%errno, actions = range.len(), "kernel answers were lost");
            failures.retain(|failure| failure.index < range.start);
            let lost =
                range.map(|index| Failure { index, action: actions[index].clone(), reason: Refusal::AnswerLost });
            failures.extend(lost);
        } else if known != failures.len() {
            // Refused before sending or by the kernel: one order for both.
            failures.sort_by_key(|failure| failure.index);
        }
    }

    /// Reads answers until the one of the last message.
    fn collect(
        &mut self,
        first_seq: u32,
        actions: &[Action],
        offset: usize,
        failures: &mut Vec<Failure>,
    ) -> Result<(), Errno> {
        let last = self.batch.last_seq();
        loop {
            let length = self.socket.receive(&mut self.answers)?;
            for frame in frames(&self.answers[..length]).filter(|frame| frame.kind == NLMSG_ERROR) {
                let position = frame.seq.wrapping_sub(first_seq) as usize;
                // Anything else is a late answer of an earlier send.
                let Some(action) = actions.get(position) else { continue };
                if let (Some(errno), message) = answer(&frame) {
                    let reason = Refusal::Kernel { errno, message };
                    failures.push(Failure { index: offset + position, action: action.clone(), reason });
                }
                if Some(frame.seq) == last {
                    return Ok(());
                }
            }
        }
    }
}

/// Sends; a moment without memory is waited out.
fn send_whole(socket: &RouteSocket, bytes: &[u8]) -> Result<(), Errno> {
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
    const TRIES: u32 = 100;
    for _ in 1..TRIES {
        match socket.send(bytes) {
            Err(Errno::ENOBUFS | Errno::ENOMEM | Errno::EAGAIN) => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
    socket.send(bytes)
}
