//! Links of a node, without a program in between: where times are measured, starting one takes too long on a busy machine.

use std::{io, os::fd::AsRawFd as _};

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

/// Takes a link of this thread's network namespace up or down.
pub fn set_link(name: &str, up: bool) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut request =
        libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } };
    for (place, octet) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = octet.cast_signed();
    }
    // SAFETY: the request has a name that ends with 0 and outlives the calls, of which the first writes the flags.
    unsafe {
        Errno::result(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request))?;
        let flag = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
        let before = request.ifr_ifru.ifru_flags;
        request.ifr_ifru.ifru_flags = if up { before | flag } else { before & !flag };
        Errno::result(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request))?;
    }
    Ok(())
}
