//! BFD on the wire: the thread that sends and hears the packets which `bgp::bfd` decides about.
//!
//! A path is declared dead when packets are missing for a few tens of milliseconds. So nothing may delay these packets:
//! not a table being read, not a task that waits for its turn. They have a thread that does nothing else, at a real-time
//! priority where the process may have one, and nobody holds a lock that this thread takes.
//!
//! ```text
//!  speaker ── Command (bounded, woken by an eventfd) ──► thread "bfd" ◄──► sockets 3784, 4784; one to send per session
//!     ▲                                                     │
//!     └──── BfdEvent (bounded; at most one per session waits inside the thread) ◄┘
//! ```
//!
//! The thread sleeps until the next timer, a packet or a command. When it wakes it first reads everything that has
//! arrived and only then looks at its timers: a thread that was itself kept from running finds the packets of the other side
//! in the socket, and does not take its own absence for a dead path.
//!
//! A session that is removed says for a detection time that it is administratively down, so that the other side does not
//! take a change of configuration for a dead path. The same goes for the end of the process, in three packets.
//!
//! # What is ugly
//!
//! Every session has a socket to send from, because RFC 5881 wants a source port for each. The sockets that receive are
//! bound to no address, so that addresses may come and go; what they hear is told apart by the kernel's packet
//! information. Where links belong to a VRF, `net.ipv4.udp_l3mdev_accept` must be set for that.
//!
//! Echo packets of the other side are looped by the kernel if it forwards. Our own ([`echo`]) need sockets that ordinary
//! processes may not have, and an address outside the subnets of the link to come from. Without those a session runs as if none were
//! wanted, says why, and tries again later, when the addresses of the node are read again ([`addresses`]).

mod addresses;
pub(crate) mod datagram;
mod echo;
mod priority;
mod runtime;
mod sockets;
mod thread;
mod timers;

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::Serialize;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

pub use bgp::bfd::{Authentication, Diagnostic, EchoState, Hops, Interval, Key, Settings, State};
pub use priority::Priority;
pub use sockets::source_address;

/// Most commands that wait for the thread. It reads them between two packets, so more than a moment's worth never waits.
pub const COMMANDS_MAX: usize = 1_024;

/// Whoever asks for a session calls it by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SessionId(pub u64);

/// A link that a session is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// A session to run.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Its name. One that runs under this name is replaced.
    pub id: SessionId,
    /// How far the other side is.
    pub hops: Hops,
    /// The other side.
    pub remote: IpAddr,
    /// Our address; [`source_address`] finds the one that the kernel would take.
    pub local: IpAddr,
    /// The link; needed with link-local addresses.
    pub device: Option<Device>,
    /// With [`Hops::Multi`], the least TTL that packets of the other side have when they arrive.
    pub ttl_min: u8,
    /// How it behaves.
    pub settings: Settings,
}

/// The state of a session changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BfdEvent {
    /// Which session.
    pub id: SessionId,
    /// Its state now.
    pub state: State,
    /// Why.
    pub diagnostic: Diagnostic,
    /// Since the last event the path failed, see [`bgp::bfd::Change::is_failure`]. It may be up again already.
    pub failed: bool,
    /// The other side says that it is administratively down, which says nothing about the path.
    pub remote_admin_down: bool,
    /// The other side's BFD outlives its control plane.
    pub remote_control_plane_independent: bool,
    /// How the echo function does.
    pub echo: Echo,
}

/// The echo function of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Echo {
    /// How it does.
    pub state: EchoState,
    /// How often packets go out, before jitter; none while none do.
    pub interval: Option<Duration>,
    /// Where they come from.
    pub source: Option<IpAddr>,
    /// Why none can be sent although they are wanted.
    pub problem: Option<String>,
}

/// A session for people and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionStatus {
    /// Its name.
    pub id: SessionId,
    /// The other side.
    pub remote: IpAddr,
    /// Our address.
    pub local: IpAddr,
    /// The link it is bound to.
    pub device: Option<Device>,
    /// More than one hop.
    pub multihop: bool,
    /// Our state.
    pub state: State,
    /// Why it changed last.
    pub diagnostic: Diagnostic,
    /// How long the state has been this.
    pub in_state: Duration,
    /// The other side's state.
    pub remote_state: State,
    /// Why that changed last.
    pub remote_diagnostic: Diagnostic,
    /// Our number of the session.
    pub local_discriminator: u32,
    /// The other side's number; 0 while it is not known.
    pub remote_discriminator: u32,
    /// How often packets go out, before jitter; none while none do.
    pub transmit_interval: Option<Duration>,
    /// After how long without a packet the path is dead; none while nothing is heard.
    pub detection_time: Option<Duration>,
    /// How often the path failed.
    pub failures: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets heard and taken.
    pub received: u64,
    /// Packets of this session that were dropped.
    pub dropped: u64,
    /// What keeps packets from being sent, or why the last one was dropped.
    pub problem: Option<String>,
    /// The echo function.
    pub echo: Echo,
    /// Echo packets sent.
    pub echoes_sent: u64,
    /// Echo packets that came back.
    pub echoes_received: u64,
}

/// Everything about the thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// How the kernel schedules it.
    pub priority: Priority,
    /// Packets that belong to no session, or are none.
    pub strange: u64,
    /// Why the last of those was dropped.
    pub last_strange: Option<String>,
    /// The longest time by which a timer was late.
    pub latest: Duration,
    /// What keeps packets from being heard.
    pub problem: Option<String>,
    /// By name.
    pub sessions: Vec<SessionStatus>,
}

/// Why the thread cannot be asked.
#[derive(Debug, Error)]
pub enum BfdError {
    /// The thread could not be started.
    #[error("failed to start the BFD thread")]
    Start(#[source] io::Error),
    /// It has ended.
    #[error("the BFD thread has ended")]
    Ended,
    /// Echo packets do not come back over several hops (RFC 5883 section 3).
    #[error("BFD echo packets cannot be sent to {0} over several hops: set the echo transmit interval to 0")]
    Echo(IpAddr),
    /// A link-local address means nothing without a link.
    #[error("a BFD session with {0} needs a link, because the address is link-local")]
    NoDevice(IpAddr),
    /// Both addresses must be of one family.
    #[error("a BFD session from {local} to {remote} mixes address families")]
    Families {
        /// Ours.
        local: IpAddr,
        /// Theirs.
        remote: IpAddr,
    },
    /// An interval of zero is no interval.
    #[error("a BFD session with {0} needs intervals above zero")]
    Interval(IpAddr),
}

/// What the thread is asked.
#[derive(Debug)]
enum Command {
    Add(Box<NewSession>),
    Configure(SessionId, Box<Settings>),
    AdminDown(SessionId),
    AdminUp(SessionId),
    Remove(SessionId),
    Status(oneshot::Sender<Status>),
    Stop,
}

/// The thread, running. Dropped, all sessions say that they are administratively down, and it ends.
#[derive(Debug)]
pub struct Bfd {
    commands: SyncSender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Bfd {
    /// Starts the thread, in the network namespace of the caller. Sockets are opened with the first session that needs
    /// them. `seed` chooses discriminators and jitter and is to be unknown to others.
    pub fn start(events: mpsc::Sender<BfdEvent>, seed: u64) -> Result<Self, BfdError> {
        let (commands, queue) = sync_channel(COMMANDS_MAX);
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = Arc::new(EventFd::from_flags(flags).map_err(|errno| BfdError::Start(errno.into()))?);
        let thread = {
            let wake = Arc::clone(&wake);
            std::thread::Builder::new()
                .name("bfd".to_owned())
                .spawn(move || thread::Thread::new(queue, wake, events, seed).run())
                .map_err(BfdError::Start)?
        };
        Ok(Self { commands, wake, thread: Some(thread) })
    }

    /// Runs a session.
    pub fn add(&self, session: NewSession) -> Result<(), BfdError> {
        check_settings(session.remote, session.hops, &session.settings)?;
        let link_local = match session.remote {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        if link_local && session.device.is_none() {
            return Err(BfdError::NoDevice(session.remote));
        }
        if session.local.is_ipv4() != session.remote.is_ipv4() {
            return Err(BfdError::Families { local: session.local, remote: session.remote });
        }
        self.ask(Command::Add(Box::new(session)))
    }

    /// Changes how a session behaves, without taking it down.
    pub fn configure(&self, id: SessionId, remote: IpAddr, hops: Hops, settings: Settings) -> Result<(), BfdError> {
        check_settings(remote, hops, &settings)?;
        self.ask(Command::Configure(id, Box::new(settings)))
    }

    /// Holds a session down.
    pub fn admin_down(&self, id: SessionId) -> Result<(), BfdError> {
        self.ask(Command::AdminDown(id))
    }

    /// Lets it come up again.
    pub fn admin_up(&self, id: SessionId) -> Result<(), BfdError> {
        self.ask(Command::AdminUp(id))
    }

    /// Ends a session, with a farewell. No event follows.
    pub fn remove(&self, id: SessionId) -> Result<(), BfdError> {
        self.ask(Command::Remove(id))
    }

    /// What runs, and how.
    pub async fn status(&self) -> Result<Status, BfdError> {
        let (answer, status) = oneshot::channel();
        self.ask(Command::Status(answer))?;
        status.await.map_err(|_| BfdError::Ended)
    }

    /// Waits for room in the queue, which the thread empties at once: it waits for nobody.
    fn ask(&self, command: Command) -> Result<(), BfdError> {
        self.commands.send(command).map_err(|_| BfdError::Ended)?;
        // The counter of an eventfd overflows after 2^64 commands that nobody read.
        self.wake.write(1).map_err(|_| BfdError::Ended)?;
        Ok(())
    }
}

impl Drop for Bfd {
    fn drop(&mut self) {
        // An error means that the thread has ended already.
        let _ended = self.ask(Command::Stop);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!(?panic, "BFD thread panicked");
        }
    }
}

fn check_settings(remote: IpAddr, hops: Hops, settings: &Settings) -> Result<(), BfdError> {
    if settings.min_echo_transmit != Interval::NONE && hops == Hops::Multi {
        return Err(BfdError::Echo(remote));
    }
    if settings.min_transmit == Interval::NONE || settings.min_receive == Interval::NONE {
        return Err(BfdError::Interval(remote));
    }
    Ok(())
}
