//! One TCP connection: octets from the kernel to the speaker and back.
//!
//! A connection is a task of the speaker's thread. It reads into the one buffer all connections share and keeps only the
//! beginning of a message that has not arrived whole; it asks the speaker for something to send only when the kernel has
//! taken what it had. So a connection holds at most one message of input and [`OUT_MAX`] of output, whatever the peer does.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bgp::{id::PeerId, session::Slot};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{TcpSocket, TcpStream},
    sync::Notify,
    task::yield_now,
    time::{Instant, timeout},
};

use super::{
    core::{Core, Shared},
    restart,
};

/// Octets asked of the speaker at a time.
const OUT_MAX: usize = 64 * 1024;
/// How long the last words of a connection may take to be sent.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Octets of the peer thrown away at a time while it takes the last words.
const UNREAD_AT_ONCE: usize = 4_096;

/// How the rest of the thread reaches a connection.
#[derive(Debug, Default)]
pub(super) struct Handle {
    wake: Notify,
    ending: RefCell<Option<Vec<u8>>>,
    ended: Cell<bool>,
    local: Cell<Option<SocketAddr>>,
    remote: Cell<Option<SocketAddr>>,
    blocked_since: Cell<Option<Instant>>,
}

impl Handle {
    /// There is something to send.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Ends the connection once these last octets are sent.
    pub(super) fn end(&self, last: Vec<u8>) {
        self.ending.replace(Some(last));
        self.ended.set(true);
        self.wake.notify_one();
    }

    /// Both ends, once they are known.
    pub(super) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.local.get().zip(self.remote.get())
    }

    /// Since when the kernel takes nothing of what is to be sent, because the peer does not read.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since.get()
    }

    async fn until_ended(&self) {
        while !self.ended.get() {
            self.wake.notified().await;
        }
    }
}

/// Opens a connection and drives it to its end.
pub(super) async fn connect(core: Shared, id: PeerId, slot: Slot, handle: Rc<Handle>) {
    let opened = tokio::select! {
        opened = open(&core, id) => opened,
        () = handle.until_ended() => return,
    };
    match opened {
        Ok(stream) => {
            if remember_ends(&handle, &stream).is_err() {
                fail(&core, id, slot, &handle, "the peer closed the connection at once");
                return;
            }
            Core::connected(&core, id, slot, &handle);
            drive(core, id, slot, handle, stream).await;
        }
        Err(reason) => fail(&core, id, slot, &handle, &reason),
    }
}

/// Drives a connection that was accepted.
pub(super) async fn accepted(core: Shared, id: PeerId, slot: Slot, handle: Rc<Handle>, stream: TcpStream) {
    drive(core, id, slot, handle, stream).await;
}

/// Notes both ends of a connection.
pub(super) fn remember_ends(handle: &Handle, stream: &TcpStream) -> io::Result<()> {
    handle.local.set(Some(stream.local_addr()?));
    handle.remote.set(Some(stream.peer_addr()?));
    Ok(())
}

async fn open(core: &Shared, id: PeerId) -> Result<TcpStream, String> {
    let ends = core.borrow().path_to(id);
    if let Ok(ends) = ends {
        restart::until_our_turn(core, id, ends).await;
    }
    let (remote, socket) = core.borrow().outgoing(id)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    socket.connect(remote).await.map_err(|error| format!("failed to connect to {remote}: {error}"))
}

fn fail(core: &Shared, id: PeerId, slot: Slot, handle: &Rc<Handle>, reason: &str) {
    if !handle.ended.get() {
        Core::closed(core, id, slot, handle, reason);
    }
}

/// What a connection keeps between two turns.
#[derive(Default)]
struct Buffers {
    /// The beginning of a message.
    input: Vec<u8>,
    output: Vec<u8>,
    /// Octets of `output` that the kernel has taken.
    taken: usize,
    /// The speaker may have more than is in `output`.
    more: bool,
}

/// What came of a turn.
enum Turn {
    /// There may be more to do at once.
    Busy,
    /// Nothing can be done now.
    Wait,
    /// The connection is gone.
    Gone(String),
}

async fn drive(core: Shared, id: PeerId, slot: Slot, handle: Rc<Handle>, mut stream: TcpStream) {
    let mut buffers = Buffers::default();
    let mut turn = Turn::Busy;
    loop {
        if let Some(last) = handle.ending.take() {
            say_last(&mut stream, &buffers, &last).await;
            return;
        }
        turn = match turn {
            Turn::Gone(reason) => return fail(&core, id, slot, &handle, &reason),
            // Others of this thread first: a peer with much to say is not more important.
            Turn::Busy => {
                yield_now().await;
                exchange(&core, id, slot, &handle, &stream, &mut buffers, true)
            }
            Turn::Wait => {
                let interest = if buffers.taken < buffers.output.len() {
                    Interest::READABLE | Interest::WRITABLE
                } else {
                    Interest::READABLE
                };
                tokio::select! {
                    ready = stream.ready(interest) => match ready {
                        Ok(ready) => {
                            let may_read = ready.is_readable() || ready.is_read_closed();
                            exchange(&core, id, slot, &handle, &stream, &mut buffers, may_read)
                        }
                        Err(error) => Turn::Gone(error.to_string()),
                    },
                    () = handle.wake.notified() => exchange(&core, id, slot, &handle, &stream, &mut buffers, false),
                }
            }
        };
        Core::run_commands(&core);
    }
}

/// Reads once and writes what can be written.
fn exchange(
    core: &Shared,
    id: PeerId,
    slot: Slot,
    handle: &Handle,
    stream: &TcpStream,
    buffers: &mut Buffers,
    may_read: bool,
) -> Turn {
    let mut busy = false;
    if may_read {
        match core.borrow_mut().read(id, slot, stream, &mut buffers.input) {
            Ok(more) => busy = more,
            Err(error) => return Turn::Gone(error.to_string()),
        }
    }
    match write(core, id, slot, handle, stream, buffers) {
        Ok(more) => busy |= more,
        Err(error) => return Turn::Gone(error.to_string()),
    }
    if busy { Turn::Busy } else { Turn::Wait }
}

/// Hands the kernel what there is, at most one helping of the speaker; true when there may be more.
fn write(
    core: &Shared,
    id: PeerId,
    slot: Slot,
    handle: &Handle,
    stream: &TcpStream,
    buffers: &mut Buffers,
) -> io::Result<bool> {
    if buffers.taken == buffers.output.len() {
        buffers.output.clear();
        buffers.taken = 0;
        buffers.more = core.borrow_mut().fill(id, slot, &mut buffers.output, OUT_MAX);
    }
    while let Some(rest) = buffers.output.get(buffers.taken..).filter(|rest| !rest.is_empty()) {
        match stream.try_write(rest) {
            Ok(octets) => {
                buffers.taken += octets;
                handle.blocked_since.set(None);
                core.borrow_mut().written(id, slot);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Who wakes this connection from now on finds it waiting for the kernel: it asks for more itself, after that.
                buffers.more = true;
                handle.blocked_since.set(handle.blocked_since.get().or_else(|| Some(Instant::now())));
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    let more = !buffers.output.is_empty() && buffers.more;
    // An idle connection holds no buffer.
    *buffers = Buffers { input: std::mem::take(&mut buffers.input), ..Buffers::default() };
    Ok(more)
}

/// Sends what is under way and the last words, as far as the peer takes them in a short time.
async fn say_last(stream: &mut TcpStream, buffers: &Buffers, last: &[u8]) {
    let under_way = buffers.output.get(buffers.taken..).unwrap_or_default();
    let said = timeout(LAST_WORDS, async {
        stream.write_all(under_way).await?;
        stream.write_all(last).await?;
        stream.shutdown().await?;
        // Where something of the peer is left unread, closing is a reset, which can overtake the words and destroy them.
        let mut unread = [0; UNREAD_AT_ONCE];
        while !last.is_empty() && stream.read(&mut unread).await? > 0 {}
        Ok::<(), io::Error>(())
    });
    // A peer that does not take them learns of the end from the connection.
    drop(said.await);
}
