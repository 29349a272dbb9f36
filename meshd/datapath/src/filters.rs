//! TC programs as classifiers of a clsact qdisc: what kernels before 6.6 have in place of TCX.
//!
//! Such an attachment is a row of the kernel's filter table and nothing that a process holds or a file pins, so it outlives us by
//! itself and is found again by its name, which says whose it is: `meshd FOLDER PROGRAM`, with the folder of pins. Only rows with
//! that name are replaced or deleted. A row is replaced in place, by its own priority and handle, and between two packets: the
//! classifier puts the new program where the old one was (`cls_bpf_change`).
//!
//! The qdisc that holds the rows stays when the last of ours goes: it carries no name, costs nothing, and somebody else may
//! be about to use it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
};

use aya::programs::TcAttachType;
use meshd_core::id::IfIndex;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::Program;

/// Where our rows are among those of a link: behind everybody who chose a low number, as TCX puts us behind who was first.
const PRIORITY: u16 = 77;
/// The qdisc's kind, and its one handle.
const CLSACT: (&str, TcHandle) = ("clsact", TcHandle { major: 0xffff, minor: 0 });
/// `ETH_P_ALL`.
const EVERY_PROTOCOL: u16 = 3;

/// Octets of the largest datagram that the kernel sends in a dump.
const RECEIVE_LEN: usize = 1 << 16;

/// A program of ours on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    priority: u16,
    handle: TcHandle,
}

/// Whose rows are meant: those of one folder of pins.
#[derive(Debug, Clone)]
pub(crate) struct Filters {
    prefix: String,
}

impl Filters {
    /// Rows of the programs whose maps are below a folder; it is the one that has no version, so that the programs of the next layout
    /// take the place of those of the last one.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { prefix: format!("meshd {} ", folder.display()) }
    }

    /// Puts a program on a link, or into the row of ours that is there; true when there was one.
    pub(crate) fn attach(
        &self,
        program: Program,
        direction: TcAttachType,
        link: IfIndex,
        descriptor: BorrowedFd<'_>,
    ) -> io::Result<bool> {
        let name = self.name(program);
        let there = rows(link, direction)?.into_iter().find(|(_, row)| *row == name).map(|(row, _)| row);
        if there.is_none() {
            need_clsact(link)?;
        }
        let (row, flags) = match there {
            Some(row) => (row, NLM_F_REPLACE),
            // The kernel chooses a handle that nobody has.
            None => (Row { priority: PRIORITY, handle: TcHandle::UNSPEC }, NLM_F_CREATE | NLM_F_EXCL),
        };
        let mut message = message(link, parent(direction), row);
        message.attributes = vec![
            TcAttribute::Kind("bpf".to_owned()),
            TcAttribute::Options(vec![
                TcOption::Bpf(TcFilterBpfOption::ProgFd(descriptor.as_raw_fd().cast_unsigned())),
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)),
                TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
            ]),
        ];
        ask(RouteNetlinkMessage::NewTrafficFilter(message), flags | NLM_F_ACK, |_| {})?;
        Ok(there.is_some())
    }

    /// Takes a program off a link; false when it was not on it.
    pub(crate) fn detach(&self, program: Program, direction: TcAttachType, link: IfIndex) -> io::Result<bool> {
        let name = self.name(program);
        let rows = match rows(link, direction) {
            // The link took them along.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
            rows => rows?,
        };
        let mut found = false;
        for (row, _) in rows.into_iter().filter(|(_, row)| *row == name) {
            let message = message(link, parent(direction), row);
            ask(RouteNetlinkMessage::DelTrafficFilter(message), NLM_F_ACK, |_| {})?;
            found = true;
        }
        Ok(found)
    }

    /// Programs of ours and their links, in the caller's network namespace.
    pub(crate) fn attached(&self) -> io::Result<Vec<(Program, IfIndex)>> {
        let mut found = Vec::new();
        for interface in &nix::net::if_::if_nameindex()? {
            let link = IfIndex(interface.index());
            for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                let programs = Program::ALL.into_iter().filter(|program| program.direction() == Some(direction));
                let names: Vec<_> = programs.map(|program| (self.name(program), program)).collect();
                for (_, name) in rows(link, direction)? {
                    found.extend(names.iter().find(|(ours, _)| *ours == name).map(|(_, program)| (*program, link)));
                }
            }
        }
        Ok(found)
    }

    fn name(&self, program: Program) -> String {
        format!("{}{}", self.prefix, program.name())
    }
}

/// True when the XDP program of a link runs in its driver.
pub(crate) fn is_in_driver(link: IfIndex) -> io::Result<bool> {
    let mut question = LinkMessage::default();
    question.header.index = link.0;
    let mut is_native = false;
    ask(RouteNetlinkMessage::GetLink(question), NLM_F_ACK, |answer| {
        if let RouteNetlinkMessage::NewLink(message) = answer {
            is_native = message.attributes.iter().any(|attribute| match attribute {
                LinkAttribute::Xdp(xdp) => xdp.contains(&LinkXdp::Attached(XdpAttached::Driver)),
                _ => false,
            });
        }
    })?;
    Ok(is_native)
}

/// The BPF classifiers in one direction of a link, with their names.
fn rows(link: IfIndex, direction: TcAttachType) -> io::Result<Vec<(Row, String)>> {
    let nothing = Row { priority: 0, handle: TcHandle::UNSPEC };
    let question = RouteNetlinkMessage::GetTrafficFilter(TcMessage::from_parts(
        TcHeader { info: 0, ..message(link, parent(direction), nothing).header },
        Vec::new(),
    ));
    let mut rows = Vec::new();
    ask(question, NLM_F_DUMP, |answer| {
        let RouteNetlinkMessage::NewTrafficFilter(message) = answer else { return };
        let row = Row { priority: (message.header.info >> 16) as u16, handle: message.header.handle };
        let name = message.attributes.iter().find_map(|attribute| match attribute {
            TcAttribute::Options(options) => options.iter().find_map(|option| match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
                _ => None,
            }),
            _ => None,
        });
        rows.extend(name.map(|name| (row, name)));
    })?;
    Ok(rows)
}

/// Adds the qdisc unless it is there.
fn need_clsact(link: IfIndex) -> io::Result<()> {
    let mut message = message(link, TcHandle::CLSACT, Row { priority: 0, handle: CLSACT.1 });
    message.header.info = 0;
    message.attributes = vec![TcAttribute::Kind(CLSACT.0.to_owned())];
    let add = RouteNetlinkMessage::NewQueueDiscipline(message);
    match ask(add, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, |_| {}) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        other => return other,
    }
    // The place is taken. An `ingress` qdisc has one direction only, and would put programs of the other one there as well.
    let mut kind = String::new();
    ask(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(link_number(link))), NLM_F_DUMP, |answer| {
        if let RouteNetlinkMessage::NewQueueDiscipline(found) = answer
            && found.header.index == link_number(link)
            && found.header.handle == CLSACT.1
        {
            kind = found.attributes.into_iter().find_map(kind_of).unwrap_or_default();
        }
    })?;
    if kind == CLSACT.0 {
        return Ok(());
    }
    let text = format!(
        "the link has a foreign {kind} qdisc in the place of clsact; hint: tc qdisc del dev LINK {kind}, if nobody needs it"
    );
    Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
}

fn kind_of(attribute: TcAttribute) -> Option<String> {
    if let TcAttribute::Kind(kind) = attribute { Some(kind) } else { None }
}

fn parent(direction: TcAttachType) -> TcHandle {
    let minor = match direction {
        TcAttachType::Ingress => TcHandle::MIN_INGRESS,
        TcAttachType::Egress => TcHandle::MIN_EGRESS,
        TcAttachType::Custom(other) => return other.into(),
    };
    TcHandle { major: CLSACT.1.major, minor }
}

fn message(link: IfIndex, parent: TcHandle, row: Row) -> TcMessage {
    let mut message = TcMessage::with_index(link_number(link));
    message.header.parent = parent;
    message.header.handle = row.handle;
    message.header.info = u32::from(row.priority) << 16 | u32::from(EVERY_PROTOCOL.to_be());
    message
}

const fn link_number(link: IfIndex) -> i32 {
    link.0.cast_signed()
}

/// Sends a question and hands on what is answered, until the end.
fn ask(message: RouteNetlinkMessage, flags: u16, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    // To the kernel, because nobody else is named.
    send(socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
    let mut buffer = vec![0; RECEIVE_LEN];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((one, behind)) = split(rest) {
            rest = behind;
            // What cannot be read is a foreign filter of a kind that we do not know.
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(one) else { continue };
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => {
                    return error.code.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code.get().abs())));
                }
                NetlinkPayload::InnerMessage(message) => each(message),
                _ => {}
            }
        }
    }
}

/// The first message of a datagram, and what follows it.
fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
    let one = datagram.get(..length).filter(|one| one.len() >= 16)?;
    Some((one, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_cut_into_its_messages() {
        let mut datagram = vec![0; 40];
        datagram[..4].copy_from_slice(&18u32.to_ne_bytes());
        datagram[20..24].copy_from_slice(&20u32.to_ne_bytes());
        let (one, rest) = split(&datagram).expect("a message");
        assert_eq!((one.len(), rest.len()), (18, 20));
        let (one, rest) = split(rest).expect("another");
        assert_eq!((one.len(), rest.len()), (20, 0));
        assert!(split(rest).is_none());
        // A length that is none would never end.
        assert!(split(&[0; 40]).is_none());
        assert!(split(&40u32.to_ne_bytes()).is_none());
    }

    #[test]
    fn names_say_whose_a_row_is_and_not_of_which_version() {
        let filters = Filters::new(Path::new("/sys/fs/bpf/meshd"));
        assert_eq!(filters.name(Program::UplinkIngress), "meshd /sys/fs/bpf/meshd uplink_ingress");
    }
}
