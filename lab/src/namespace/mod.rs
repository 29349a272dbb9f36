//! Namespaces of a node and how code gets into them.
//!
//! A node's network, mount and UTS namespaces live as long as one small process in them, the holder. Nothing is bound
//! into a folder of the host, so when the holder dies, for whatever reason, the kernel takes namespaces, links, tmpfs
//! and bpffs with it.
//!
//! A thread may change its own namespaces, so everything that has to happen inside a node happens in a thread made for
//! it, which ends afterwards: writing sysctls, mounting, starting programs. No code runs between fork and exec except
//! [`Birth`], which puts the new process into the node's control group before its program starts.

mod mounts;
mod sysctls;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns, unshare};

pub(crate) use mounts::{MountPlan, ResolvedBind};

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::process::ProcessId;
use crate::topology::Role;

/// Everything in a lab has the lab's name in this variable of its environment.
pub(crate) const LAB_ENV: &str = "MESHD_LAB";
/// Longest line a newborn process notes down: a decimal number and a line feed.
const PID_LINE_LEN_MAX: usize = 12;

/// Open namespaces of one node.
#[derive(Debug)]
pub(crate) struct Namespaces {
    net: OwnedFd,
    mount: OwnedFd,
    uts: OwnedFd,
}

impl Namespaces {
    /// Those of a living process.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let open = |name: &str| -> Result<OwnedFd> {
            let path = PathBuf::from(format!("/proc/{pid}/ns/{name}"));
            File::open(&path).map(OwnedFd::from).map_err(Error::file("open", path))
        };
        Ok(Self { net: open("net")?, mount: open("mnt")?, uts: open("uts")? })
    }

    /// Runs `inside` in these namespaces, in a thread of its own.
    pub(crate) fn within<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_thread(|| {
            // Root and working folder are shared by the threads of a process, and a mount namespace comes with new ones.
            unshare(CloneFlags::CLONE_FS).map_err(Error::system("detach a thread's working folder"))?;
            for (namespace, kind) in [
                (&self.mount, CloneFlags::CLONE_NEWNS),
                (&self.net, CloneFlags::CLONE_NEWNET),
                (&self.uts, CloneFlags::CLONE_NEWUTS),
            ] {
                setns(namespace, kind).map_err(Error::system("enter a namespace of a node"))?;
            }
            inside()
        })
    }
}

/// What the namespaces of a node are made of.
pub(crate) struct Plan<'a> {
    /// The lab it belongs to.
    pub(crate) lab: &'a str,
    /// Host name.
    pub(crate) name: &'a str,
    /// Decides about forwarding; a switch has no role.
    pub(crate) role: Option<Role>,
    /// Its file systems.
    pub(crate) mounts: MountPlan,
}

/// Creates the namespaces of a node and the process that holds them.
pub(crate) fn create(plan: &Plan<'_>, birth: Birth) -> Result<ProcessId> {
    in_thread(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
            .map_err(Error::system(format!("create the namespaces of {}", plan.name)))?;
        nix::unistd::sethostname(plan.name).map_err(Error::system("set the host name"))?;
        plan.mounts.apply()?;
        sysctls::apply(plan.role)?;
        let mut holder = Command::new("sleep");
        holder.arg("infinity").current_dir("/").env_clear();
        holder.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // The search path was read before the node's own file systems covered parts of the host's.
        if let Some(path) = std::env::var_os("PATH") {
            holder.env("PATH", path);
        }
        holder.env(LAB_ENV, plan.lab);
        birth.detach(&mut holder);
        let child = holder.spawn().map_err(|source| Error::Start {
            command: "sleep infinity".to_owned(),
            node: plan.name.to_owned(),
            source,
        })?;
        started(child.id(), plan.name)
    })
}

/// The process just started, which has not been waited for and so still has its number.
pub(crate) fn started(pid: u32, node: &str) -> Result<ProcessId> {
    i32::try_from(pid).ok().and_then(ProcessId::of_child).ok_or_else(|| Error::Command {
        command: format!("process {pid}"),
        node: node.to_owned(),
        status: "an unknown status right after its start".to_owned(),
        stderr: String::new(),
    })
}

/// Where a new process is registered before its program starts, so that `down` finds it even if we die next.
#[derive(Debug)]
pub(crate) struct Birth {
    group: Option<File>,
    journal: File,
}

impl Birth {
    /// Opens the control group of a node, if there is one, and the lab's list of process numbers.
    pub(crate) fn open(group: Option<&Cgroup>, journal: &Path) -> Result<Self> {
        let append = |path: &Path| {
            std::fs::OpenOptions::new().append(true).create(true).open(path).map_err(Error::file("open", path))
        };
        let group = group
            .map(|group| {
                let path = group.procs();
                std::fs::OpenOptions::new().write(true).open(&path).map_err(Error::file("open", path))
            })
            .transpose()?;
        Ok(Self { group, journal: append(journal)? })
    }

    /// Registers the process that `command` will start.
    pub(crate) fn register(self, command: &mut Command) {
        self.prepare(command, false);
    }

    /// Registers it and gives it a session of its own, so that it outlives us and our terminal.
    pub(crate) fn detach(self, command: &mut Command) {
        self.prepare(command, true);
    }

    fn prepare(self, command: &mut Command, own_session: bool) {
        let at_birth = move || -> std::io::Result<()> {
            // Whoever waits for signals in a thread of its own has blocked them everywhere else; a program expects none
            // to be blocked.
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            if own_session {
                nix::unistd::setsid()?;
            }
            if let Some(group) = &self.group {
                nix::unistd::write(group, b"0")?;
            }
            let mut line = [0; PID_LINE_LEN_MAX];
            nix::unistd::write(&self.journal, pid_line(nix::unistd::getpid().as_raw(), &mut line))?;
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe calls are made: sigprocmask, setsid, getpid, and write on
        // files opened before the fork; nothing allocates, locks or unwinds, and the buffer is on the stack.
        unsafe { command.pre_exec(at_birth) };
    }
}

/// A process number in decimal with a line feed, without allocating.
fn pid_line(pid: i32, buffer: &mut [u8; PID_LINE_LEN_MAX]) -> &[u8] {
    let mut rest = pid.unsigned_abs();
    let mut start = PID_LINE_LEN_MAX - 1;
    buffer[start] = b'\n';
    loop {
        start -= 1;
        buffer[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &buffer[start..];
        }
    }
}

fn in_thread<T: Send>(inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("lab-node".to_owned())
            .spawn_scoped(scope, inside)
            .map_err(Error::file("start a thread for", "a node"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_lines_need_no_allocation() {
        for pid in [1, 42, 4_194_304, i32::MAX] {
            assert_eq!(pid_line(pid, &mut [0; PID_LINE_LEN_MAX]), format!("{pid}\n").as_bytes());
        }
    }
}
