//! The loaded programs, their maps and their attachments.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::MapData,
    programs::{
        ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkOrder, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::{XdpError, XdpLink},
    },
};
use meshd_abi::{
    AffinityKey, AffinityValue, Backend, CidrKey, Counter, Direct, Fragment, FragmentKey, Identity, Link, MAGLEV_CHUNK,
    NeighborKey, NextHop, Policy, PolicyKey, RangeKey, ReceiverKey, Settings, SocketClient, SocketKey, SocketValue,
    Tunnel, V4, V6,
};
use meshd_core::id::IfIndex;
use tracing::{debug, info};

use crate::{
    CpuArray, DatapathError, Features, OBJECT, Table,
    connections::{self, Connections},
    filters::{self, Filters},
    generation::{self, Generation},
    identities::{self, Identities, Lines},
    pins,
    services::{Frontends, Services},
    shape::{self, Sizes},
    sockets, sys,
    takeover::{self, Shared},
    ticks,
};

/// A program of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// Packets from outside, in the driver.
    XdpUplink,
    /// Packets from outside, in the stack.
    UplinkIngress,
    /// Packets that leave the node.
    UplinkEgress,
    /// Packets of a workload, at the node's end of its link.
    WorkloadIngress,
    /// Packets for a workload, at the node's end of its link.
    WorkloadEgress,
    /// Packets that came out of the tunnel.
    TunnelIngress,
    /// Packets that leave through the tunnel.
    TunnelEgress,
}

impl Program {
    /// Every program.
    pub const ALL: [Self; 7] = [
        Self::XdpUplink,
        Self::UplinkIngress,
        Self::UplinkEgress,
        Self::WorkloadIngress,
        Self::WorkloadEgress,
        Self::TunnelIngress,
        Self::TunnelEgress,
    ];

    /// Its name in the object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::XdpUplink => "xdp_uplink",
            Self::UplinkIngress => "uplink_ingress",
            Self::UplinkEgress => "uplink_egress",
            Self::WorkloadIngress => "workload_ingress",
            Self::WorkloadEgress => "workload_egress",
            Self::TunnelIngress => "tunnel_ingress",
            Self::TunnelEgress => "tunnel_egress",
        }
    }

    /// Where it hooks in; `None` for XDP.
    pub(crate) const fn direction(self) -> Option<TcAttachType> {
        match self {
            Self::XdpUplink => None,
            Self::UplinkIngress | Self::WorkloadIngress | Self::TunnelIngress => Some(TcAttachType::Ingress),
            Self::UplinkEgress | Self::WorkloadEgress | Self::TunnelEgress => Some(TcAttachType::Egress),
        }
    }
}

/// How a program ended up on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// XDP in the driver, before a socket buffer exists.
    Native,
    /// XDP in the network stack, because the driver has none of its own. Slower, same verdicts.
    Generic,
    /// TC by a link of its own (TCX, kernel 6.6 and newer).
    Tcx,
    /// TC by a classifier of a clsact qdisc, which is what older kernels have.
    Classifier,
    /// On a control group.
    Group,
    /// Not at all, because the driver has no XDP: TC programs do all of it.
    Left,
    /// The attachment of an earlier process was kept and runs this program now, in the mode it had.
    Adopted,
}

impl Attached {
    /// The word for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Native => "xdp native",
            Self::Generic => "xdp generic",
            Self::Tcx => "tcx",
            Self::Classifier => "clsact",
            Self::Group => "cgroup",
            Self::Left => "left to tc",
            Self::Adopted => "adopted",
        }
    }
}

/// The maps of one address family.
#[derive(Debug)]
pub struct FamilyMaps<A> {
    /// Services by destination.
    pub services: Services<A>,
    /// Backends by index.
    pub backends: Table<u32, Backend<A>>,
    /// Nodes of backends that see clients themselves, by the backend's index.
    pub direct: Table<u32, Direct<A>>,
    /// Backends of this node that other nodes may send to, for a service; the backend's index.
    pub receivers: Table<ReceiverKey<A>, u32>,
    /// Known connections.
    pub connections: Connections<A>,
    /// Backends that clients had last.
    pub affinity: Table<AffinityKey<A>, AffinityValue>,
    /// Datagrams in fragments.
    pub fragments: Table<FragmentKey<A>, Fragment>,
    /// Addresses of workloads and nodes.
    pub identities: Identities<A>,
    /// Prefixes of which something is known.
    pub cidrs: Table<CidrKey<A>, Identity>,
    /// Prefixes of the mesh, values of `meshd_abi::mesh_flags`.
    pub mesh: Table<CidrKey<A>, u32>,
    /// Prefixes that may use a service.
    pub ranges: Table<RangeKey<A>, u32>,
    /// Sockets that asked for a service.
    pub sockets: Table<SocketKey<A>, SocketValue<A>>,
}

/// The maps.
#[derive(Debug)]
pub struct Maps {
    /// Element 0 is what the programs know of their node.
    pub settings: Table<u32, Settings>,
    /// Counters by reason.
    pub counters: CpuArray<Counter>,
    /// Neighbors by index.
    pub next_hops: Table<u32, NextHop>,
    /// Indexes of neighbors by their link-layer address.
    pub neighbors: Table<NeighborKey, u32>,
    /// Links that XDP runs on, by their index modulo the room.
    pub links: Table<u32, Link>,
    /// Far ends of the tunnel by index.
    pub tunnels: Table<u32, Tunnel>,
    /// Indexes of far ends by their address, one of IPv4 in the form of `V6::mapped`.
    pub far_ends: Table<V6, u32>,
    /// Indexes of backends, a range of them for each service.
    pub members: Table<u32, u32>,
    /// Backends that the sockets of a network namespace had last.
    pub socket_affinity: Table<SocketClient, AffinityValue>,
    /// Element 0 differs from before when connections were removed, see [`Maps::forget_recent`].
    epoch: Table<u32, u32>,
    /// Element 0 is the tick until which resets of connections that nobody knows are held back.
    handover: Table<u32, u32>,
    /// Descriptors of Maglev chunks.
    maglev: Table<u32, u32>,
    /// Which destinations may be frontends.
    frontends: Arc<Frontends>,
    /// Who may talk to whom.
    pub policy: Table<PolicyKey, Policy>,
    /// IPv4.
    pub v4: FamilyMaps<V4>,
    /// IPv6.
    pub v6: FamilyMaps<V6>,
}

impl Maps {
    /// Opens the maps that a daemon has pinned below `folder`, whether it still runs or not.
    ///
    /// # Errors
    /// When there are none, they have another layout, or this process may not open them.
    pub fn existing(folder: &Path) -> Result<Self, DatapathError> {
        let generation = generation::existing(folder)?;
        for spec in shape::maps(&Sizes::default()) {
            let path = generation.path.join(spec.name);
            // How many elements there are is a matter of configuration.
            let found = pins::shape_of(&path, spec.name)?;
            if let Some(found) = found.filter(|found| !found.has_same_elements(&spec.shape)) {
                return Err(DatapathError::OtherElements { path, found, expected: spec.shape });
            }
        }
        Self::open(&generation.path)
    }

    fn open(folder: &Path) -> Result<Self, DatapathError> {
        let words = table(&folder.join("FRONTENDS"), "FRONTENDS")?;
        let frontends = Arc::new(Frontends::new(words));
        let lines = Lines::open(&folder.join(identities::LINES))?;
        macro_rules! family {
            ($digit:literal, $lines:expr) => {
                FamilyMaps {
                    services: Services::new(
                        table(&folder.join(concat!("SERVICES", $digit)), concat!("SERVICES", $digit))?,
                        &frontends,
                    ),
                    backends: table(&folder.join(concat!("BACKENDS", $digit)), concat!("BACKENDS", $digit))?,
                    direct: table(&folder.join(concat!("DIRECT", $digit)), concat!("DIRECT", $digit))?,
                    receivers: table(&folder.join(concat!("RECEIVERS", $digit)), concat!("RECEIVERS", $digit))?,
                    connections: Connections::open(folder, concat!("CONNECTIONS", $digit))?
                        .ok_or_else(|| DatapathError::NothingPinned { folder: folder.to_owned() })?,
                    affinity: table(&folder.join(concat!("AFFINITY", $digit)), concat!("AFFINITY", $digit))?,
                    fragments: table(&folder.join(concat!("FRAGMENTS", $digit)), concat!("FRAGMENTS", $digit))?,
                    identities: Identities::new(
                        table(&folder.join(concat!("IDENTITIES", $digit)), concat!("IDENTITIES", $digit))?,
                        $lines,
                    ),
                    cidrs: table(&folder.join(concat!("CIDRS", $digit)), concat!("CIDRS", $digit))?,
                    mesh: table(&folder.join(concat!("MESH", $digit)), concat!("MESH", $digit))?,
                    ranges: table(&folder.join(concat!("RANGES", $digit)), concat!("RANGES", $digit))?,
                    sockets: table(&folder.join(concat!("SOCKETS", $digit)), concat!("SOCKETS", $digit))?,
                }
            };
        }
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| DatapathError::Pins {
            operation: "read",
            path: path.into(),
            source,
        })?;
        Ok(Self {
            settings: table(&folder.join("SETTINGS"), "SETTINGS")?,
            counters: CpuArray::new("COUNTERS", open(&folder.join("COUNTERS"), "COUNTERS")?, cpus),
            next_hops: table(&folder.join("NEXT_HOPS"), "NEXT_HOPS")?,
            neighbors: table(&folder.join("NEIGHBORS"), "NEIGHBORS")?,
            links: table(&folder.join("LINKS"), "LINKS")?,
            tunnels: table(&folder.join("TUNNELS"), "TUNNELS")?,
            far_ends: table(&folder.join("FAR_ENDS"), "FAR_ENDS")?,
            members: table(&folder.join("MEMBERS"), "MEMBERS")?,
            socket_affinity: table(&folder.join("SOCKET_AFFINITY"), "SOCKET_AFFINITY")?,
            epoch: table(&folder.join("EPOCH"), "EPOCH")?,
            handover: table(&folder.join("HANDOVER"), "HANDOVER")?,
            maglev: table(&folder.join("MAGLEV"), "MAGLEV")?,
            policy: table(&folder.join("POLICY"), "POLICY")?,
            v4: family!("4", Some(lines)),
            v6: family!("6", None),
            frontends,
        })
    }

    /// Makes the filter in front of the services forget those that were removed. Until then packets for them are looked up, as before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn trim_frontends(&self) -> Result<(), DatapathError> {
        self.frontends.trim(&self.v4.services, &self.v6.services)
    }

    /// To be called after connections were removed or written that may be in use: what the programs remember of any connection counts no
    /// longer. Without it they translate packets of what was removed for the rest of the second.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_recent(&self) -> Result<(), DatapathError> {
        // Who does the same at the same time may write the same number: it is another than before for both.
        let epoch = self.epoch.get(&0)?.unwrap_or(0);
        self.epoch.put(&0, &epoch.wrapping_add(1))
    }

    /// Until this tick the programs drop resets of connections that nobody knows: see `meshd_abi::Reason::ResetHeld`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hold_resets(&self, until: u32) -> Result<(), DatapathError> {
        self.handover.put(&0, &until)
    }

    /// Writes one chunk of a Maglev table.
    ///
    /// A chunk that is there is written in place: a packet that comes meanwhile finds slots of the old table and of the new one, and
    /// both hold members that serve. Another map in its place would be one step, and the kernel waits for every packet under way
    /// before it goes on, which takes a hundred times as long.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_chunk(&self, index: u32, slots: &[u16; MAGLEV_CHUNK]) -> Result<(), DatapathError> {
        let error = |source| DatapathError::Elements { operation: "write to", map: "MAGLEV", source };
        if let Some(id) = self.maglev.get(&index)? {
            return self.chunk(id)?.put(&0, slots);
        }
        let chunk = sys::create_array("meshd_chunk", size_of_val(slots) as u32).map_err(error)?;
        let inner: Table<u32, [u16; MAGLEV_CHUNK]> = Table::new("MAGLEV", chunk);
        inner.put(&0, slots)?;
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&inner.descriptor()).cast_unsigned();
        self.maglev.put(&index, &descriptor)
    }

    /// Calls a function with every chunk there is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn walk_chunks(&self, mut visit: impl FnMut(u32, &[u16; MAGLEV_CHUNK])) -> Result<(), DatapathError> {
        for (index, id) in self.maglev.all()? {
            if let Some(slots) = self.chunk(id)?.get(&0)? {
                visit(index, &slots);
            }
        }
        Ok(())
    }

    /// The chunk with this number among the kernel's maps.
    fn chunk(&self, id: u32) -> Result<Table<u32, [u16; MAGLEV_CHUNK]>, DatapathError> {
        let map = sys::map_by_id(id).map_err(|source| DatapathError::Elements {
            operation: "open a chunk of",
            map: "MAGLEV",
            source,
        })?;
        Ok(Table::new("MAGLEV", map))
    }

    /// Puts a chunk of earlier maps into a place of these.
    pub(crate) fn share_chunk(&self, index: u32, id: u32) -> Result<(), DatapathError> {
        let chunk = self.chunk(id)?;
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&chunk.descriptor()).cast_unsigned();
        self.maglev.put(&index, &descriptor)
    }

    /// Frees one chunk of a Maglev table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_chunk(&self, index: u32) -> Result<bool, DatapathError> {
        self.maglev.remove(&index)
    }
}

pub(crate) fn open(pin: &Path, map: &'static str) -> Result<OwnedFd, DatapathError> {
    let error = |source| DatapathError::Map { map, source: Box::new(source) };
    let data = MapData::from_pin(pin).map_err(error)?;
    let descriptor = data.fd().as_fd().try_clone_to_owned();
    descriptor.map_err(|source| DatapathError::Elements { operation: "keep open", map, source })
}

/// A pinned map, of which the caller knows that its elements are of these types. `map` is what an error calls it.
pub(crate) fn table<K: Copy, V: Copy>(pin: &Path, map: &'static str) -> Result<Table<K, V>, DatapathError> {
    Ok(Table::new(map, open(pin, map)?))
}

/// The loaded programs and their maps.
///
/// Dropping this closes our descriptors and changes nothing in the kernel: what is pinned stays.
pub struct Programs {
    pub(crate) ebpf: Ebpf,
    pub(crate) generation: Generation,
    /// Those before it, until [`Programs::settle`].
    pub(crate) older: Vec<Generation>,
    /// What it has in common with the one of them that it took everything over from.
    shared: Shared,
    /// Connections of the generation before were taken over once more before anything was attached.
    caught_up: bool,
    /// They were again, after everything was attached, or that was tried.
    settled: bool,
    features: Features,
    filters: Filters,
    /// The maps.
    pub maps: Maps,
}

impl Programs {
    /// Loads the embedded object; maps that an earlier process left below `folder` are used on when they are as these programs need
    /// them, and otherwise what they hold is taken over by new ones.
    ///
    /// `folder` must be on a bpf file system and is created when it is absent; in production it is
    /// [`meshd_abi::BPFFS_FOLDER`].
    ///
    /// # Errors
    /// When the folder is none for pins, or the kernel refuses a map or a program.
    pub fn load(folder: &Path, sizes: &Sizes) -> Result<Self, DatapathError> {
        let features = Features::probe()?;
        let filters = Filters::new(folder);
        let specs = shape::maps(sizes);
        let (generation, older) = generation::prepare(folder, &specs)?;
        let source = generation::best(&older);
        let shared = match source {
            Some(source) => takeover::share(source, &generation, &specs)?,
            None => Shared::default(),
        };
        let mut loader = EbpfLoader::new();
        let keeps_order = u32::from(!shape::KEEPS_ORDER);
        loader.override_global("CHANGES_ORDER", &keeps_order, true);
        let buckets: Vec<(&str, u32)> = specs
            .iter()
            .filter_map(|spec| Some((connections::buckets_of(spec.name)?, spec.shape.max_entries)))
            .collect();
        for (name, count) in &buckets {
            loader.override_global(name, count, true);
        }
        // Nobody asks for the order of what is in a line.
        let lines = if shape::KEEPS_ORDER { shape::identity_lines(sizes.identities) } else { 0 };
        loader.override_global(identities::LINES_COUNT, &lines, true);
        for spec in specs {
            let pin = generation.path.join(spec.name);
            loader.map_max_entries(spec.name, spec.shape.max_entries).map_pin_path(spec.name, pin);
        }
        // What a packet may be too old for after a restart is not worth a pin.
        let remembered = sizes.remembered();
        let masks = remembered.map(|elements| elements.saturating_sub(1));
        for ((map, mask), (elements, value)) in [("RECENT4", "RECENT4_MASK"), ("RECENT6", "RECENT6_MASK")]
            .into_iter()
            .zip(remembered.into_iter().zip(&masks))
        {
            loader.map_max_entries(map, elements.max(1)).override_global(mask, value, true);
        }
        if remembered[0] == 0 {
            loader.map_max_entries("PACKED4", 1);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| DatapathError::Load(Box::new(error)))?;
        for program in Program::ALL {
            let loaded = match program.direction() {
                None => xdp(&mut ebpf, program)?.load(),
                Some(_) => classifier(&mut ebpf, program)?.load(),
            };
            loaded.map_err(|source| verify_error(program.name(), source))?;
        }
        sockets::load(&mut ebpf)?;
        connections::draw_seed(&generation.path)?;
        let maps = Maps::open(&generation.path)?;
        if !generation.is_complete() {
            if let Some(source) = source {
                takeover::everything(&maps, sizes, source, &shared)?;
            }
            generation.set_complete()?;
        }
        maps.v4.identities.rebuild()?;
        // What there is may be of a process that knew no filter. Programs that look at it meanwhile lose nothing: only what no service
        // has is taken out.
        maps.frontends.rebuild(&maps.v4.services, &maps.v6.services)?;
        Ok(Self { ebpf, generation, older, shared, caught_up: false, settled: false, features, filters, maps })
    }

    /// Ends the life of earlier generations of maps: to be called when every program is where it belongs. Connections that went on
    /// through the old programs are taken over once more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn settle(&mut self) -> Result<(), DatapathError> {
        // Who cannot remove earlier maps tries again and again, and must not hold resets back for ever.
        let is_first = !std::mem::replace(&mut self.settled, true);
        self.catch_up(is_first)?;
        while let Some(older) = self.older.last() {
            older.remove()?;
            info!(folder = %older.path.display(), "removed earlier maps");
            self.older.pop();
        }
        Ok(())
    }

    /// Takes over connections that earlier generations have and this one has not. One that begins meanwhile may be unknown here until the next
    /// time, and with `hold` nobody ends it for that.
    fn catch_up(&self, hold: bool) -> Result<(), DatapathError> {
        let Some(source) = generation::best(&self.older) else { return Ok(()) };
        // A process that ended after it had taken everything over may have left programs of the one before in their places.
        let others: Vec<&Generation> =
            self.older.iter().filter(|older| *older != source && older.is_complete()).collect();
        let is_shared = self.shared.has_connections() && others.is_empty();
        let hold = || {
            let until = ticks().wrapping_add(HANDOVER_TICKS);
            if hold && !is_shared { self.maps.hold_resets(until) } else { Ok(()) }
        };
        hold()?;
        for other in others {
            takeover::connections(&self.maps, other, &Shared::default())?;
        }
        takeover::connections(&self.maps, source, &self.shared)?;
        // From the end of what may have taken long.
        hold()
    }

    /// What the kernel can do.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// The object, for test runs of single programs.
    #[must_use]
    pub fn object(&self) -> &Ebpf {
        &self.ebpf
    }

    /// Puts a program on a link of the caller's network namespace.
    ///
    /// An attachment of ours that is already there gets this program in one step. A foreign XDP program is left alone: the
    /// kernel answers EBUSY and that is the error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, program: Program, link: IfIndex) -> Result<Attached, DatapathError> {
        self.put(program, link, true)
    }

    /// The same, but XDP only where the driver has it: in the stack it saves TC nothing, and meets frames whose sums a device has yet to
    /// compute.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_where_it_pays(&mut self, program: Program, link: IfIndex) -> Result<Attached, DatapathError> {
        let attached = self.put(program, link, false)?;
        if attached == Attached::Adopted && self.mode(program, link)? == Attached::Generic {
            self.detach(program, link)?;
            return Ok(Attached::Left);
        }
        Ok(attached)
    }

    /// True when the link's driver sends what XDP gives it. Kernels before 6.3 do not tell, which counts as no.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn transmits(&self, link: IfIndex) -> Result<bool, DatapathError> {
        let error =
            |source| DatapathError::Filter { operation: "look at", program: Program::XdpUplink.name(), link, source };
        crate::driver::transmits(link).map_err(error)
    }

    fn put(&mut self, program: Program, link: IfIndex, in_stack: bool) -> Result<Attached, DatapathError> {
        if !std::mem::replace(&mut self.caught_up, true) {
            self.catch_up(true)?;
        }
        if let Some(direction) = program.direction().filter(|_| !self.features.tcx) {
            return self.attach_filter(program, direction, link);
        }
        let pin = self.pin(program, link)?;
        if let Some(attachment) = pins::open_link(&pin)? {
            if self.adopt(program, link, &pin, attachment)? {
                debug!(%link, program = program.name(), "kept the attachment of an earlier process");
                return Ok(Attached::Adopted);
            }
            // The link it was on is gone and its index was given to another one.
            pins::remove(&pin)?;
        }
        let (attachment, attached) = match program.direction() {
            None => match attach_xdp(&mut self.ebpf, program, link, in_stack)? {
                Some(attachment) => attachment,
                None => return Ok(Attached::Left),
            },
            Some(direction) => attach_classifier(&mut self.ebpf, program, direction, link)?,
        };
        attachment.pin(&pin).map_err(|source| DatapathError::Pin { path: pin, source })?;
        debug!(%link, program = program.name(), ?attached, "attached");
        Ok(attached)
    }

    fn attach_filter(
        &mut self,
        program: Program,
        direction: TcAttachType,
        link: IfIndex,
    ) -> Result<Attached, DatapathError> {
        let unloaded = |source| attach_error("attach", program, link, source);
        let descriptor = classifier(&mut self.ebpf, program)?.fd().map_err(unloaded)?;
        let adopted =
            self.filters.attach(program, direction, link, descriptor.as_fd()).map_err(|source| {
                match source.raw_os_error() {
                    Some(libc::ENODEV) => DatapathError::NoLink { link },
                    _ => DatapathError::Filter { operation: "attach", program: program.name(), link, source },
                }
            })?;
        let attached = if adopted { Attached::Adopted } else { Attached::Classifier };
        debug!(%link, program = program.name(), ?attached, "attached by a classifier");
        Ok(attached)
    }

    /// How a program that is on a link is attached, also when that was done by an earlier process.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn mode(&self, program: Program, link: IfIndex) -> Result<Attached, DatapathError> {
        if program.direction().is_some() {
            return Ok(if self.features.tcx { Attached::Tcx } else { Attached::Classifier });
        }
        let error = |source| DatapathError::Filter { operation: "look at", program: program.name(), link, source };
        let is_native = filters::is_in_driver(link).map_err(error)?;
        Ok(if is_native { Attached::Native } else { Attached::Generic })
    }

    /// Programs and links of our attachments, whichever process made them.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn attached(&self) -> Result<Vec<(Program, IfIndex)>, DatapathError> {
        let folders = self.older.iter().chain([&self.generation]);
        // A folder that cannot be listed shows when something is pinned in it.
        let pins = folders.flat_map(|folder| pins::entries(&folder.path).unwrap_or_default());
        let mut attached: Vec<_> = pins
            .filter_map(|pin| {
                let (name, link) = pins::link_of(&pin)?;
                Some((Program::ALL.into_iter().find(|program| program.name() == name)?, link))
            })
            .collect();
        if !self.features.tcx {
            attached.extend(self.filters.attached().map_err(DatapathError::Filters)?);
        }
        attached.sort_unstable();
        attached.dedup();
        Ok(attached)
    }

    /// Takes a program off a link; false when it was not on it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&mut self, program: Program, link: IfIndex) -> Result<bool, DatapathError> {
        if let Some(direction) = program.direction().filter(|_| !self.features.tcx) {
            return detach_filter(&self.filters, program, direction, link);
        }
        pins::detach(&self.pin(program, link)?)
    }

    /// Detaches everything of ours below the folder and removes the folder: see [`remove`].
    ///
    /// # Errors
    /// The first refusal.
    pub fn remove(self) -> Result<(), DatapathError> {
        let folder = self.generation.path.parent().map(Path::to_owned);
        drop(self);
        folder.map_or(Ok(()), |folder| remove(&folder).map(drop::<bool>))
    }

    /// Where the attachment of a program to a link is pinned. One that an earlier generation pinned is moved there.
    fn pin(&self, program: Program, link: IfIndex) -> Result<PathBuf, DatapathError> {
        self.pin_of(pins::link_name(program.name(), link))
    }

    /// Where a pin of this name is, or belongs.
    pub(crate) fn pin_of(&self, name: String) -> Result<PathBuf, DatapathError> {
        let pin = self.generation.path.join(&name);
        for older in self.older.iter().rev() {
            if !pin.exists() && pins::rename(&older.path.join(&name), &pin)? {
                debug!(from = %older.path.display(), pin = name, "moved the pin of an attachment");
            }
        }
        Ok(pin)
    }

    /// Puts our program into an attachment; false when the attachment has lost its link.
    fn adopt(
        &mut self,
        program: Program,
        link: IfIndex,
        pin: &Path,
        attachment: PinnedLink,
    ) -> Result<bool, DatapathError> {
        let unexpected = |source| DatapathError::Attachment { path: pin.to_owned(), source };
        let attachment = FdLink::from(attachment);
        // The pin alone keeps it; a descriptor held here would keep the program on after the pin is removed.
        let outcome = match program.direction() {
            None => {
                let attachment = XdpLink::try_from(attachment).map_err(unexpected)?;
                let xdp = xdp(&mut self.ebpf, program)?;
                xdp.attach_to_link(attachment).and_then(|id| xdp.take_link(id).map(|_| ()))
            }
            Some(_) => {
                let attachment = SchedClassifierLink::try_from(attachment).map_err(unexpected)?;
                let classifier = classifier(&mut self.ebpf, program)?;
                classifier.attach_to_link(attachment).and_then(|id| classifier.take_link(id).map(|_| ()))
            }
        };
        match outcome {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(libc::ENOLINK) => Ok(false),
            Err(source) => Err(attach_error("adopt", program, link, source)),
        }
    }
}

/// Detaches everything of ours below a folder of pins and removes the folder: what a node does on which the datapath was switched
/// off. True when there was something.
///
/// Continues after a failure and reports the first.
///
/// # Errors
/// The first refusal.
pub fn remove(folder: &Path) -> Result<bool, DatapathError> {
    if !folder.exists() {
        return Ok(false);
    }
    let mut outcome = remove_filters(folder);
    for generation in generation::all(folder)? {
        outcome = outcome.and(generation.remove());
    }
    outcome?;
    pins::remove_empty_folder(folder)?;
    Ok(true)
}

/// Takes programs off that are attached without a pin.
fn remove_filters(folder: &Path) -> Result<(), DatapathError> {
    if Features::probe()?.tcx {
        return Ok(());
    }
    let filters = Filters::new(folder);
    let mut outcome = Ok(());
    for (program, link) in filters.attached().map_err(DatapathError::Filters)? {
        if let Some(direction) = program.direction() {
            outcome = outcome.and(detach_filter(&filters, program, direction, link).map(drop::<bool>));
        }
    }
    outcome
}

fn detach_filter(
    filters: &Filters,
    program: Program,
    direction: TcAttachType,
    link: IfIndex,
) -> Result<bool, DatapathError> {
    let error = |source| DatapathError::Filter { operation: "detach", program: program.name(), link, source };
    filters.detach(program, direction, link).map_err(error)
}

/// For so long resets of connections that nobody knows are held back after connections were taken over: those that answers without an entry
/// cause far away are still on their way.
const HANDOVER_TICKS: u32 = 4;

/// How drivers refuse a program that the stack can run: they have no XDP at all (`EOPNOTSUPP`, or the kernel's own `ENOTSUPP`), or
/// not with the link's MTU, queues or offloads (`EINVAL`, `ERANGE`). If it is refused for another reason, so is the second try.
const NO_DRIVER: [i32; 4] = [libc::EOPNOTSUPP, sys::ENOTSUPP, libc::EINVAL, libc::ERANGE];

/// Puts an XDP program into the link's driver, or with `in_stack` into the stack where the driver has none; `None`: nowhere.
fn attach_xdp(
    ebpf: &mut Ebpf,
    program: Program,
    link: IfIndex,
    in_stack: bool,
) -> Result<Option<(FdLink, Attached)>, DatapathError> {
    let error = |source| attach_error("attach", program, link, source);
    let xdp = xdp(ebpf, program)?;
    let (id, attached) = match xdp.attach_to_if_index(link.0, XdpMode::Driver) {
        Ok(id) => (id, Attached::Native),
        Err(refusal) if errno(&refusal).is_some_and(|errno| NO_DRIVER.contains(&errno)) => {
            if !in_stack {
                return Ok(None);
            }
            (xdp.attach_to_if_index(link.0, XdpMode::Skb).map_err(error)?, Attached::Generic)
        }
        Err(source) => return Err(error(source)),
    };
    let attachment = xdp.take_link(id).map_err(error)?;
    let attachment = FdLink::try_from(attachment)
        .map_err(|source| DatapathError::Attachment { path: program.name().into(), source })?;
    Ok(Some((attachment, attached)))
}

fn attach_classifier(
    ebpf: &mut Ebpf,
    program: Program,
    direction: TcAttachType,
    link: IfIndex,
) -> Result<(FdLink, Attached), DatapathError> {
    let error = |source| attach_error("attach", program, link, source);
    let name = link_name(link)?;
    let classifier = classifier(ebpf, program)?;
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = classifier.attach_with_options(&name, direction, options).map_err(error)?;
    let attachment = classifier.take_link(id).map_err(error)?;
    let attachment = FdLink::try_from(attachment)
        .map_err(|source| DatapathError::Attachment { path: program.name().into(), source })?;
    Ok((attachment, Attached::Tcx))
}

fn link_name(link: IfIndex) -> Result<String, DatapathError> {
    let name: CString = nix::net::if_::if_indextoname(link.0).map_err(|_| DatapathError::NoLink { link })?;
    name.into_string().map_err(|_| DatapathError::NoLink { link })
}

fn xdp(ebpf: &mut Ebpf, program: Program) -> Result<&mut Xdp, DatapathError> {
    match ebpf.program_mut(program.name()).map(TryInto::try_into) {
        Some(Ok(program)) => Ok(program),
        Some(Err(_)) | None => Err(DatapathError::Missing { kind: "XDP program", name: program.name() }),
    }
}

fn classifier(ebpf: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, DatapathError> {
    match ebpf.program_mut(program.name()).map(TryInto::try_into) {
        Some(Ok(program)) => Ok(program),
        Some(Err(_)) | None => Err(DatapathError::Missing { kind: "TC program", name: program.name() }),
    }
}

pub(crate) fn verify_error(program: &'static str, source: ProgramError) -> DatapathError {
    DatapathError::Verify { program, source: Box::new(source) }
}

fn attach_error(operation: &'static str, program: Program, link: IfIndex, source: ProgramError) -> DatapathError {
    DatapathError::Attach { operation, program: program.name(), link, source: Box::new(source) }
}

/// The kernel's own answer inside an error of the loader.
fn errno(error: &ProgramError) -> Option<i32> {
    let of = |error: &io::Error| error.raw_os_error();
    match error {
        ProgramError::SyscallError(error) => of(&error.io_error),
        ProgramError::XdpError(XdpError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    }
}
