//! Calls of bpf(2) that the loader library has not: batches, and elements of any type.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::NonNull,
};

use libc::{SYS_bpf, c_long};

/// "Operation is not supported", as the kernel says it inside; it gets out here and there.
pub(crate) const ENOTSUPP: i32 = 524;

/// `BPF_MAP_LOOKUP_ELEM` and its neighbors in `enum bpf_cmd`.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(crate) enum Element {
    /// Copies an element's value.
    Lookup = 1,
    /// Adds or replaces an element.
    Update = 2,
    /// Removes an element.
    Delete = 3,
    /// Copies the key behind a key, or the first one.
    NextKey = 4,
}

/// `BPF_MAP_LOOKUP_BATCH` and its neighbors in `enum bpf_cmd`.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(crate) enum Batch {
    /// Copies elements.
    Lookup = 24,
    /// Adds or replaces elements.
    Update = 26,
    /// Removes elements.
    Delete = 27,
}

/// The part of `union bpf_attr` for one element.
#[repr(C)]
struct ElementAttr {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for a batch.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Works on one element. A null value is for deletions, and a null key for the one before the first.
///
/// # Safety
/// `key` and `value` must point to as many bytes as the map's keys and values have.
pub(crate) unsafe fn element(command: Element, map: BorrowedFd<'_>, key: *const u8, value: *mut u8) -> io::Result<()> {
    let mut attr = ElementAttr {
        map: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: key as u64,
        value: value as u64,
        flags: 0,
    };
    // SAFETY: the caller vouches for the pointers.
    result(unsafe { libc::syscall(SYS_bpf, command as i32, &raw mut attr, size_of::<ElementAttr>()) })
}

/// Memory of a map that was made for it, which programs use at the same time.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    octets: usize,
}

// SAFETY: it is memory that is shared already; who uses it says how.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps so many octets, which the map must have.
    pub(crate) fn map(map: BorrowedFd<'_>, octets: usize) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, wherever the kernel has room for it.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), octets, access, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, octets })
    }

    /// The first octet.
    pub(crate) const fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody can have a pointer into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.octets) };
    }
}

/// A random number.
pub(crate) fn random() -> io::Result<u64> {
    let mut number = 0u64;
    // SAFETY: as many octets as there are. So few are never given in part.
    let got = unsafe { libc::getrandom((&raw mut number).cast(), size_of_val(&number), 0) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

/// Where the next batch of a lookup begins.
pub(crate) type Cursor = [u8; 64];

/// Works on many elements at once; returns how many were, also when it failed in between.
///
/// # Safety
/// `keys` and `values` must point to `count` keys and values; the cursors are those of the same walk.
pub(crate) unsafe fn batch(
    command: Batch,
    map: BorrowedFd<'_>,
    keys: *mut u8,
    values: *mut u8,
    count: u32,
    cursors: (Option<&Cursor>, Option<&mut Cursor>),
) -> (u32, io::Result<()>) {
    let mut attr = BatchAttr {
        in_batch: cursors.0.map_or(0, |cursor| cursor.as_ptr() as u64),
        out_batch: cursors.1.map_or(0, |cursor| cursor.as_mut_ptr() as u64),
        keys: keys as u64,
        values: values as u64,
        count,
        map: map.as_raw_fd().cast_unsigned(),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the caller vouches for the pointers, and a cursor is as long as the longest key of ours.
    let answer = unsafe { libc::syscall(SYS_bpf, command as i32, &raw mut attr, size_of::<BatchAttr>()) };
    (attr.count, result(answer))
}

fn result(answer: c_long) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The part of `union bpf_attr` that a map is made with.
#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
    numa: u32,
    name: [u8; 16],
}

/// Makes an array of one element.
pub(crate) fn create_array(name: &str, value_size: u32) -> io::Result<OwnedFd> {
    /// `BPF_MAP_CREATE`
    const CREATE: i32 = 0;
    /// `BPF_MAP_TYPE_ARRAY`
    const ARRAY: u32 = 2;
    let mut attr = CreateAttr { kind: ARRAY, key_size: 4, value_size, max_entries: 1, ..CreateAttr::default() };
    for (to, from) in attr.name.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    // SAFETY: the structure is as long as the kernel is told.
    let answer = unsafe { libc::syscall(SYS_bpf, CREATE, &raw mut attr, size_of::<CreateAttr>()) };
    descriptor(answer)
}

/// Opens a map by its number, which is what a map of maps answers.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    /// `BPF_MAP_GET_FD_BY_ID`
    const BY_ID: i32 = 14;
    // The number, where to go on, and flags.
    let mut attr = [id, 0, 0];
    // SAFETY: the structure is as long as the kernel is told.
    descriptor(unsafe { libc::syscall(SYS_bpf, BY_ID, attr.as_mut_ptr(), size_of_val(&attr)) })
}

/// Opens what is pinned there.
pub(crate) fn object(pin: &Path) -> io::Result<OwnedFd> {
    /// `BPF_OBJ_GET`
    const GET: i32 = 7;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // The path, a descriptor that is not used, and flags.
    let mut attr = [path.as_ptr() as u64, 0];
    // SAFETY: the structure is as long as the kernel is told, and the path ends with a zero.
    descriptor(unsafe { libc::syscall(SYS_bpf, GET, attr.as_mut_ptr(), size_of_val(&attr)) })
}

/// Puts another program into an attachment, in one step.
pub(crate) fn update_link(attachment: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    /// `BPF_LINK_UPDATE`
    const UPDATE: i32 = 29;
    // Attachment, program, flags, and the program that must be there if the flags say so.
    let mut attr = [attachment.as_raw_fd().cast_unsigned(), program.as_raw_fd().cast_unsigned(), 0, 0];
    // SAFETY: the structure is as long as the kernel is told.
    result(unsafe { libc::syscall(SYS_bpf, UPDATE, attr.as_mut_ptr(), size_of_val(&attr)) })
}

fn descriptor(answer: c_long) -> io::Result<OwnedFd> {
    result(answer)?;
    let descriptor = i32::try_from(answer).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// One instruction with an immediate value; its operation as the kernel numbers them.
pub(crate) const fn instruction(operation: u8, register: u8, immediate: i32) -> [u8; 8] {
    let [a, b, c, d] = immediate.to_le_bytes();
    [operation, register, 0, 0, a, b, c, d]
}

/// The part of `union bpf_attr` that a program is loaded with.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

/// The part of `union bpf_attr` that a program is run with.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    program: u32,
    answer: u32,
    input_size: u32,
    output_size: u32,
    input: u64,
    output: u64,
    repeat: u32,
    duration: u32,
}

/// Loads a TC program of a few instructions, runs it on a packet and unloads it; what it returned.
pub(crate) fn run_classifier(code: &[[u8; 8]], packet: &[u8]) -> io::Result<u32> {
    /// `BPF_PROG_LOAD`
    const LOAD: i32 = 5;
    /// `BPF_PROG_TEST_RUN`
    const RUN: i32 = 10;
    /// `BPF_PROG_TYPE_SCHED_CLS`
    const CLASSIFIER: u32 = 3;
    let license = c"Dual MIT/GPL";
    let mut attr = LoadAttr {
        kind: CLASSIFIER,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttr::default()
    };
    for (to, from) in attr.name.iter_mut().zip(*b"meshd_probe") {
        *to = from;
    }
    // SAFETY: the structure is as long as the kernel is told, and what it points to outlives the call.
    let program = descriptor(unsafe { libc::syscall(SYS_bpf, LOAD, &raw mut attr, size_of::<LoadAttr>()) })?;
    let mut attr = RunAttr {
        program: program.as_raw_fd().cast_unsigned(),
        input_size: packet.len() as u32,
        input: packet.as_ptr() as u64,
        ..RunAttr::default()
    };
    // SAFETY: as above.
    result(unsafe { libc::syscall(SYS_bpf, RUN, &raw mut attr, size_of::<RunAttr>()) })?;
    Ok(attr.answer)
}
