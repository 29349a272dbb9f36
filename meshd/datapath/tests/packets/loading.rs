//! The programs load, and how hard that is for the verifier.

use meshd_datapath::{Program, SocketProgram};

use crate::bench::{in_namespaces, load};

/// Most instructions the verifier may look at for one program; the kernel's own limit is 1,000,000.
const VERIFIED_MAX: u32 = 250_000;
/// The same with Linux 6.1, whose verifier finds fewer states alike.
const VERIFIED_MAX_6_1: u32 = 400_000;

#[test]
fn every_program_loads_and_stays_easy_to_verify() {
    in_namespaces(|folder| {
        let programs = load(&folder);
        let names = Program::ALL.map(Program::name).into_iter().chain(SocketProgram::ALL.map(SocketProgram::name));
        let release = nix::sys::utsname::uname().expect("uname").release().to_string_lossy().into_owned();
        let most = if release.starts_with("6.1.") { VERIFIED_MAX_6_1 } else { VERIFIED_MAX };
        let mut excessive = Vec::new();
        for name in names {
            let loaded = programs.object().program(name).expect("it is in the object");
            let info = loaded.info().expect("the kernel describes it");
            let verified = info.verified_instruction_count().expect("kernel 5.16 and newer tell");
            println!("{name}: {verified} instructions verified, {:?} octets", info.size_jitted());
            if verified > most {
                excessive.push((name, verified));
            }
        }
        assert!(excessive.is_empty(), "more than {most}: {excessive:?}");
        programs.remove().expect("remove");
        assert!(!folder.exists());
    });
}
