//! The programs load, and how hard that is for the verifier.

use meshd_datapath::{Program, SocketProgram};

use crate::bench::{in_namespaces, load};

/// Most instructions the verifier may look at for one program; the kernel's own limit is 1,000,000.
const VERIFIED_MAX: u32 = 200_000;

#[test]
fn every_program_loads_and_stays_easy_to_verify() {
    in_namespaces(|folder| {
        let programs = load(&folder);
        let names = Program::ALL.map(Program::name).into_iter().chain(SocketProgram::ALL.map(SocketProgram::name));
        for name in names {
            let loaded = programs.object().program(name).expect("it is in the object");
            let info = loaded.info().expect("the kernel describes it");
            let verified = info.verified_instruction_count().expect("kernel 5.16 and newer tell");
            println!("{name}: {verified} instructions verified, {:?} octets", info.size_jitted());
            assert!(verified <= VERIFIED_MAX, "{name}: {verified}");
        }
        programs.remove().expect("remove");
        assert!(!folder.exists());
    });
}
