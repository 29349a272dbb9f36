//! Runs a program many times on packets of many flows, and tells how long one of them took.

use std::{fs, path::Path, thread};

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, LpmTrie, MapError, MapInfo, ProgramArray, lpm_trie},
    programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// What the build script compiled.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/meshd-ebpf-bench"));
/// The map of lines of identities.
const LINES: &str = "IDENTITY_LINES4";
/// What a driver answers when the tail call failed.
const FAILED: u32 = 99;
/// `XDP_PASS`.
const PASS: u32 = 2;
/// Tries to insert an element when memory is short.
const INSERT_TRIES: u32 = 10_000;
/// Packets of an empty program in one measurement.
const EMPTY_REPEAT: u32 = 200_000;

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    Xdp,
    Tc,
}

/// A frame, and how packets of it differ.
#[derive(Clone, Debug)]
pub(crate) struct Packets {
    /// The frame of flow 0: 64 octets of IPv4 or 80 of IPv6.
    pub(crate) frame: Vec<u8>,
    /// Number of flows; 0: each packet is the first of a flow.
    pub(crate) flows: u32,
    /// The last four octets of the source address of flow 0.
    pub(crate) address: u32,
    /// The source port of flow 0.
    pub(crate) port: u16,
    /// Flows of one address, as a power of two.
    pub(crate) port_bits: u32,
}

impl Packets {
    fn is_ipv4(&self) -> bool {
        self.frame.len() == 64
    }
}

/// The structure of the same name in the driver.
#[repr(C)]
#[derive(Clone, Copy)]
struct Drive {
    turn: u64,
    flows: u32,
    address: u32,
    port: u32,
    port_bits: u32,
    frame: [u8; 80],
}

// SAFETY: integers without padding.
unsafe impl Pod for Drive {}

/// One measurement, in nanoseconds a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// The empty XDP program, run alone: the unit of everything.
    pub(crate) empty: f64,
    /// The driver with an empty program behind it.
    pub(crate) floor: f64,
    /// The driver with the program under test.
    pub(crate) whole: f64,
}

/// The loaded driver.
pub(crate) struct Driver {
    ebpf: Ebpf,
}

impl Driver {
    /// Loads the driver over the datapath's tables of identities, which are pinned below this folder, and keeps this thread on one processor.
    pub(crate) fn load(folder: &Path) -> anyhow::Result<Self> {
        let last = thread::available_parallelism()?.get() - 1;
        let mut cpus = CpuSet::new();
        cpus.set(last)?;
        sched_setaffinity(Pid::from_raw(0), &cpus).context("failed to stay on one processor")?;
        let pins = meshd_datapath::latest(folder)?.context("no datapath is loaded")?;
        let lines = MapInfo::from_pin(pins.join(LINES))?.max_entries();
        let mut loader = EbpfLoader::new();
        loader.override_global("IDENTITY_LINES4_COUNT", &lines, true);
        for map in ["IDENTITIES4", LINES] {
            loader.map_pin_path(map, pins.join(map));
        }
        let mut ebpf = loader.load(OBJECT).context("failed to load the driver")?;
        for (name, program) in ebpf.programs_mut() {
            match program {
                aya::programs::Program::Xdp(program) => program.load(),
                aya::programs::Program::SchedClassifier(program) => program.load(),
                _ => Ok(()),
            }
            .with_context(|| format!("failed to load {name} of the driver"))?;
        }
        Ok(Self { ebpf })
    }

    /// Runs a program `repeat` times on packets of these flows, between runs of the empty programs.
    pub(crate) fn sample(
        &mut self,
        program: &ProgramFd,
        layer: Layer,
        packets: &Packets,
        repeat: u32,
    ) -> anyhow::Result<Sample> {
        let empty = {
            let data = vec![0; 64];
            let empty = self.xdp("empty_xdp")?;
            timed(EMPTY_REPEAT, || run(empty, &data, EMPTY_REPEAT))?
        };
        let floor_program = match layer {
            Layer::Xdp => self.xdp("empty_xdp")?.fd()?.try_clone()?,
            Layer::Tc => self.tc("empty_tc")?.fd()?.try_clone()?,
        };
        let floor = self.drive(&floor_program, layer, packets, EMPTY_REPEAT)?;
        let whole = self.drive(program, layer, packets, repeat)?;
        Ok(Sample { empty, floor, whole })
    }

    /// A program of the driver's object.
    pub(crate) fn own(&self, name: &str) -> anyhow::Result<ProgramFd> {
        Ok(self.xdp(name)?.fd()?.try_clone()?)
    }

    /// Adds addresses to the trie that tables of identities are compared with.
    pub(crate) fn add_to_trie(&mut self, addresses: std::ops::Range<u32>) -> anyhow::Result<()> {
        let mut trie: LpmTrie<_, u32, [u32; 3]> = LpmTrie::try_from(self.ebpf.map_mut("TRIE").context("no map TRIE")?)?;
        for address in addresses {
            patiently(|| trie.insert(&lpm_trie::Key::new(32, address.to_be()), [address, 1, 0], 0))?;
        }
        Ok(())
    }

    /// Fails unless a program of the driver lets a packet pass.
    pub(crate) fn need_pass(&self, name: &str, packets: &Packets) -> anyhow::Result<()> {
        let options = TestRunOptions { data_in: Some(&packets.frame), repeat: 1, ..TestRunOptions::new() };
        let answer = self.xdp(name)?.test_run(options)?.return_value;
        ensure!(answer == PASS, "{name} answered {answer} and not {PASS}");
        Ok(())
    }

    fn drive(&mut self, program: &ProgramFd, layer: Layer, packets: &Packets, repeat: u32) -> anyhow::Result<f64> {
        let array = match layer {
            Layer::Xdp => "XDP_UNDER_TEST",
            Layer::Tc => "TC_UNDER_TEST",
        };
        let mut under_test = ProgramArray::try_from(self.ebpf.map_mut(array).context("no array of programs")?)?;
        under_test.set(0, program, 0).context("failed to put the program behind the driver")?;
        let mut drive = Drive {
            turn: 0,
            flows: packets.flows,
            address: packets.address,
            port: packets.port.into(),
            port_bits: packets.port_bits,
            frame: [0; 80],
        };
        drive.frame[..packets.frame.len()].copy_from_slice(&packets.frame);
        let mut map: Array<_, Drive> = Array::try_from(self.ebpf.map_mut("DRIVE").context("no map DRIVE")?)?;
        map.set(0, drive, 0)?;
        match (layer, packets.is_ipv4()) {
            (Layer::Xdp, v4) => {
                let driver = self.xdp(if v4 { "drive_xdp4" } else { "drive_xdp6" })?;
                timed(repeat, || run(driver, &packets.frame, repeat))
            }
            (Layer::Tc, v4) => {
                let driver = self.tc(if v4 { "drive_tc4" } else { "drive_tc6" })?;
                timed(repeat, || run(driver, &packets.frame, repeat))
            }
        }
    }

    fn xdp(&self, name: &str) -> anyhow::Result<&Xdp> {
        Ok(self.ebpf.program(name).with_context(|| format!("the driver has no program {name}"))?.try_into()?)
    }

    fn tc(&self, name: &str) -> anyhow::Result<&SchedClassifier> {
        Ok(self.ebpf.program(name).with_context(|| format!("the driver has no program {name}"))?.try_into()?)
    }
}

/// Tries again when there was no memory: the kernel fills up its reserve behind the back of who empties it.
fn patiently(mut insert: impl FnMut() -> Result<(), MapError>) -> anyhow::Result<()> {
    for _ in 0..INSERT_TRIES {
        match insert() {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::OutOfMemory => {
                thread::yield_now();
            }
            outcome => return Ok(outcome?),
        }
    }
    Ok(insert()?)
}

/// Runs a program on a packet.
fn run<'a, P>(program: &P, data: &'a [u8], repeat: u32) -> anyhow::Result<()>
where
    P: aya::programs::TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult>,
{
    let result = program.test_run(TestRunOptions { data_in: Some(data), repeat, ..TestRunOptions::new() })?;
    ensure!(result.return_value != FAILED, "the tail call to the program under test failed");
    Ok(())
}

/// Processor time of this thread for each of `repeat` packets, in nanoseconds.
fn timed(repeat: u32, body: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(std::time::Duration::from);
    let before = now()?;
    body()?;
    Ok((now()? - before).as_nanos() as f64 / f64::from(repeat))
}

/// Refuses to measure without the compiler of the kernel: figures would mean nothing.
pub(crate) fn need_jit() -> anyhow::Result<()> {
    let on = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    ensure!(on.trim() != "0", "programs are interpreted here; hint: sysctl -w net.core.bpf_jit_enable=1");
    Ok(())
}
