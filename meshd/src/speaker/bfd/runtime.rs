//! What runs beside a session's state machine: its sockets to send from, and what is counted.

use std::{io, time::Duration};

use bgp::{
    Moment,
    bfd::{Change, Discard, EchoPacket, EchoState, Interval, Path, Session, Settings},
};

use super::{Device, Echo, SessionId, echo::EchoSender, sockets::Transmitter};

/// A session whose socket failed gets a new one this much later.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// Errors of a socket whose link or address is another one now.
const GONE: [i32; 4] = [libc::ENODEV, libc::ENXIO, libc::EADDRNOTAVAIL, libc::EINVAL];

/// What the thread knows of a session beside its state machine.
#[derive(Debug)]
pub(super) struct Runtime {
    pub(super) id: SessionId,
    pub(super) device: Option<Device>,
    pub(super) transmitter: Option<Transmitter>,
    pub(super) reopen_at: Moment,
    /// It was removed, and says so until then.
    pub(super) leaves_at: Option<Moment>,
    pub(super) since: Moment,
    /// Failed since the last event.
    pub(super) failed: bool,
    pub(super) failures: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) dropped: u64,
    pub(super) problem: Option<String>,
    /// What is wanted. The session has it too, but for echo packets that cannot be sent.
    pub(super) settings: Settings,
    pub(super) echo: Option<EchoSender>,
    pub(super) echo_retry_at: Option<Moment>,
    pub(super) echo_problem: Option<String>,
    pub(super) echoes_sent: u64,
    pub(super) echoes_received: u64,
    /// What the owner was told last.
    pub(super) echo_told: Echo,
    pub(super) remote_admin_down_told: bool,
}

impl Runtime {
    /// A session that begins.
    pub(super) const fn new(id: SessionId, device: Option<Device>, settings: Settings, now: Moment) -> Self {
        Self {
            id,
            device,
            transmitter: None,
            reopen_at: now,
            leaves_at: None,
            since: now,
            failed: false,
            failures: 0,
            sent: 0,
            received: 0,
            dropped: 0,
            problem: None,
            settings,
            echo: None,
            echo_retry_at: None,
            echo_problem: None,
            echoes_sent: 0,
            echoes_received: 0,
            echo_told: Echo { state: EchoState::Off, interval: None, source: None, problem: None },
            remote_admin_down_told: false,
        }
    }

    pub(super) fn drop_packet(&mut self, discard: Discard) {
        self.dropped += 1;
        // Dropping what comes while we are held down is as it should be.
        if discard != Discard::AdminDown {
            self.problem = Some(discard.to_string());
        }
    }

    /// Notes a change of state. `late_max` is how late a timer of the thread has been at most: what failed while the machine
    /// kept the thread from running is no fault of the path.
    pub(super) fn change(&mut self, now: Moment, change: &Change, path: &Path, late_max: Duration) {
        self.since = now;
        let failed = change.is_failure();
        self.failed |= failed;
        self.failures += u64::from(failed);
        let (remote, state) = (path.remote, change.to);
        tracing::info!(%remote, %state, diagnostic = %change.diagnostic, failed, ?late_max, "BFD session changed");
    }

    pub(super) fn echo_report(&self, session: &Session) -> Echo {
        Echo {
            state: session.echo_state(),
            interval: session.echo_interval().map(Interval::duration),
            source: self.echo.as_ref().map(EchoSender::source),
            problem: self.echo_problem.clone(),
        }
    }

    /// Sends an echo packet. What cannot be sent does not come back, which is for the session to judge.
    pub(super) fn send_echo(&mut self, now: Moment, packet: EchoPacket) {
        let Some(sender) = &self.echo else { return };
        match sender.send(&packet.encode()) {
            Ok(()) => self.echoes_sent += 1,
            Err(error) => {
                let problem = format!("failed to send an echo packet: {error}");
                if self.problem.as_deref() != Some(&problem) {
                    tracing::debug!(problem, "BFD echo packet was not sent");
                }
                self.problem = Some(problem);
                if error.raw_os_error().is_some_and(|code| GONE.contains(&code)) {
                    self.echo = None;
                    self.echo_retry_at = Some(now.after(REOPEN_INTERVAL));
                }
            }
        }
    }

    pub(super) fn send(&mut self, now: Moment, path: &Path, octets: &[u8]) {
        match self.try_send(now, path, octets) {
            Ok(true) => {
                self.sent += 1;
                self.problem = None;
            }
            Ok(false) => {}
            Err(error) => {
                let problem = format!("failed to send to {}: {error}", path.remote);
                if self.problem.as_deref() != Some(&problem) {
                    tracing::debug!(problem, "BFD packet was not sent");
                }
                self.problem = Some(problem);
                // A path without a route, or a link without a carrier, does not need another socket, and the source port
                // should stay.
                if self.transmitter.is_none() || error.raw_os_error().is_some_and(|code| GONE.contains(&code)) {
                    self.transmitter = None;
                    self.reopen_at = now.after(REOPEN_INTERVAL);
                }
            }
        }
    }

    /// False while a new socket is not to be opened yet. Addresses and links come and go, so one that fails is replaced.
    fn try_send(&mut self, now: Moment, path: &Path, octets: &[u8]) -> io::Result<bool> {
        let transmitter = match &mut self.transmitter {
            Some(transmitter) => transmitter,
            None if now < self.reopen_at => return Ok(false),
            none => {
                // Spreads sessions over the ports; what is taken is passed by.
                let hint = u32::try_from(now.0 % u64::from(u32::MAX)).unwrap_or_default();
                none.insert(Transmitter::open(path.hops, path.local, path.remote, self.device.as_ref(), hint)?)
            }
        };
        transmitter.send(octets).map(|()| true)
    }
}
