//! Ends sockets whose backend is gone.
//!
//! A socket that was given a backend when it connected talks to that backend until it is told otherwise, and nobody else knows: its
//! packets are translated nowhere. `SOCK_DESTROY` makes the kernel end it, and the process gets `ECONNABORTED`.
//!
//! ```text
//!  reconciler ── Vec<Victim> ──► thread ──► for each network namespace: dump by port ──► match by cookie ──► destroy
//!       ▲                          │
//!       └────────── Report ────────┘
//! ```
//!
//! What is ugly: the kernel looks sockets up per network namespace, so each has to be entered, and there is no list of them
//! ([`namespaces`]). A thread of its own does that, because entering a namespace changes the thread. Needs `CAP_NET_ADMIN` where the
//! socket is and `CAP_SYS_ADMIN` to enter; without `CONFIG_INET_DIAG_DESTROY` nothing is ended, which the report says.

mod diag;
mod namespaces;

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
};
use tracing::{debug, info};

/// Lists that wait for the thread. Whoever finds no room keeps its list and comes again.
const QUEUE_LEN: usize = 1;

/// A socket that is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Victim {
    /// Its cookie, which no other socket has had since the machine started.
    pub cookie: u64,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
    /// Whom it is connected to. A socket that is connected to somebody else by now stays.
    pub peer: SocketAddr,
}

/// What became of all lists so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Sockets that were ended.
    pub destroyed: u64,
    /// Why the last list was not worked through, if it was not.
    pub problem: Option<String>,
}

/// The thread that ends sockets. It ends when this is dropped.
#[derive(Debug)]
pub struct Destroyer {
    queue: SyncSender<BTreeSet<Victim>>,
    report: Arc<Mutex<Report>>,
}

impl Destroyer {
    /// Starts it in the calling thread's network namespace. `group` is the control group whose processes' namespaces are searched
    /// besides.
    ///
    /// # Errors
    /// When the system gives no thread, or the namespace cannot be opened.
    pub fn start(group: PathBuf) -> io::Result<Self> {
        let (queue, lists) = sync_channel(QUEUE_LEN);
        let report = Arc::new(Mutex::new(Report::default()));
        let own = File::open("/proc/thread-self/ns/net")?;
        let worker = Worker { own, group, lists, report: report.clone() };
        thread::Builder::new().name("sockets".to_owned()).spawn(move || worker.run())?;
        Ok(Self { queue, report })
    }

    /// Hands a list over; gives it back when the thread still has others.
    ///
    /// # Errors
    /// The list.
    pub fn submit(&self, victims: BTreeSet<Victim>) -> Result<(), BTreeSet<Victim>> {
        self.queue.try_send(victims).map_err(|error| match error {
            TrySendError::Full(victims) | TrySendError::Disconnected(victims) => victims,
        })
    }

    /// What became of the lists.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Worker {
    own: File,
    group: PathBuf,
    lists: Receiver<BTreeSet<Victim>>,
    report: Arc<Mutex<Report>>,
}

impl Worker {
    fn run(self) {
        while let Ok(mut victims) = self.lists.recv() {
            let wanted = victims.len();
            let (destroyed, problem) = self.work(&mut victims);
            if destroyed > 0 {
                info!(destroyed, "ended sockets of backends that are gone");
            }
            // Most of what is not found has been closed by its process.
            debug!(wanted, missing = victims.len(), "looked for sockets of backends that are gone");
            let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            report.destroyed += destroyed as u64;
            report.problem = problem;
        }
    }

    fn work(&self, victims: &mut BTreeSet<Victim>) -> (usize, Option<String>) {
        let refused = |errno: Errno| match errno {
            Errno::EOPNOTSUPP => {
                "the kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY), so they stay with a backend that is gone"
                    .to_owned()
            }
            errno => format!("failed to end sockets of a backend that is gone: {errno}"),
        };
        let mut destroyed = 0;
        let mut problem = None;
        let mut search = |namespace: &File, victims: &mut BTreeSet<Victim>| {
            // A namespace ends with its last process, and its sockets with it.
            if setns(namespace, CloneFlags::CLONE_NEWNET).is_ok() {
                match diag::destroy(victims) {
                    Ok(count) => destroyed += count,
                    Err(errno) => problem = Some(refused(errno)),
                }
            }
            victims.is_empty()
        };
        if search(&self.own, victims) {
            return (destroyed, problem);
        }
        let found = namespaces::find(&self.group, &self.own);
        for namespace in &found.namespaces {
            if search(namespace, victims) {
                break;
            }
        }
        // A thread in a namespace keeps it, also when everybody else has left.
        if let Err(errno) = setns(&self.own, CloneFlags::CLONE_NEWNET) {
            problem = Some(refused(errno));
        }
        if found.is_cut && !victims.is_empty() {
            problem = Some(format!(
                "sockets of a backend that is gone were looked for in {} network namespaces and {} processes at most",
                namespaces::NAMESPACES_MAX,
                namespaces::PROCESSES_MAX
            ));
        }
        (destroyed, problem)
    }
}
