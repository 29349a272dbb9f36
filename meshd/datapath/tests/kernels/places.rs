//! Where in the source the instructions come from that a kernel has left of a program: it removes what no packet can reach, and one that
//! is wrong about it removes what packets do reach.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya::programs::Program;

/// `struct bpf_prog_info` in words of 32 bits, up to what the kernel knows about lines.
type ProgramInfo = [u32; 45];
/// Its `btf_id`, `nr_line_info`, `line_info` (a pointer, low half first) and `line_info_rec_size`.
const BTF_ID: usize = 32;
const LINES: usize = 37;
const LINES_TO: usize = 38;
const LINE_OCTETS: usize = 43;

/// `struct bpf_line_info`: instruction, file, text and place, where the last is the line times 1,024 and the column, and files are offsets
/// into the strings of the BTF.
type LineInfo = [u32; 4];

/// One for each piece of a program that has a place of its own, as lines of text.
pub(crate) fn left(name: &str, program: &Program) -> Vec<String> {
    let descriptor = program.fd().expect("it is loaded").as_fd();
    let mut info: ProgramInfo = [0; 45];
    describe(descriptor, &mut info).expect("the kernel describes the program");
    assert_eq!(info[LINE_OCTETS] as usize, size_of::<LineInfo>());
    let strings = Strings::of(info[BTF_ID]);
    let mut lines: Vec<LineInfo> = vec![[0; 4]; info[LINES] as usize];
    let to = lines.as_mut_ptr() as u64;
    let mut asked: ProgramInfo = [0; 45];
    (asked[LINES], asked[LINE_OCTETS]) = (info[LINES], info[LINE_OCTETS]);
    (asked[LINES_TO], asked[LINES_TO + 1]) = (to as u32, (to >> 32) as u32);
    describe(descriptor, &mut asked).expect("the kernel tells the lines");
    let place =
        |[_, file, _, place]: &LineInfo| format!("{name} {}:{}:{}\n", strings.at(*file), place >> 10, place & 1023);
    assert!(!lines.is_empty(), "{name} has no lines");
    lines.iter().map(place).collect()
}

/// The strings of a BTF.
struct Strings(Vec<u8>);

impl Strings {
    fn of(id: u32) -> Self {
        /// `BPF_BTF_GET_FD_BY_ID`
        const BY_ID: i32 = 19;
        let mut attr = [id, 0, 0];
        // SAFETY: the structure is as long as the kernel is told, and the descriptor it answers is ours.
        let btf = unsafe {
            let answer = libc::syscall(libc::SYS_bpf, BY_ID, attr.as_mut_ptr(), size_of_val(&attr));
            assert!(answer >= 0, "open BTF {id}: {}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(i32::try_from(answer).expect("a descriptor"))
        };
        // `struct bpf_btf_info`: where to copy it, its octets and its number, the name's place and length, and whose it is.
        let mut info = [0_u32; 8];
        describe(btf.as_fd(), &mut info).expect("the kernel describes the BTF");
        let mut bytes = vec![0_u8; info[2] as usize];
        let to = bytes.as_mut_ptr() as u64;
        let mut asked = [to as u32, (to >> 32) as u32, info[2], 0, 0, 0, 0, 0];
        describe(btf.as_fd(), &mut asked).expect("the kernel tells the BTF");
        // `struct btf_header`: its own length at 4, and the place of the strings behind it at 16.
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four octets")) as usize;
        let begin = word(4) + word(16);
        Self(bytes.split_off(begin))
    }

    fn at(&self, offset: u32) -> &str {
        let text = CStr::from_bytes_until_nul(&self.0[offset as usize..]).expect("it ends");
        text.to_str().expect("text")
    }
}

/// `BPF_OBJ_GET_INFO_BY_FD`.
fn describe(object: BorrowedFd<'_>, info: &mut [u32]) -> io::Result<()> {
    const INFO: i32 = 15;
    let to = info.as_mut_ptr() as u64;
    let length = u32::try_from(size_of_val(info)).map_err(io::Error::other)?;
    let mut attr = [object.as_raw_fd().cast_unsigned(), length, to as u32, (to >> 32) as u32];
    // SAFETY: both structures are as long as the kernel is told, and so is what the second one points to.
    match unsafe { libc::syscall(libc::SYS_bpf, INFO, attr.as_mut_ptr(), size_of_val(&attr)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
