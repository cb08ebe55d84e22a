//! Whose audit socket it is that gets the kernel's records: kernel/audit.c.
//!
//! A socket of NETLINK_AUDIT by which a program only tells something, as dbus-daemon and sshd do, is like any other one. But auditd has made
//! its own the one to which the kernel sends all records (AUDIT_SET with AUDIT_STATUS_PID), and that ends with the socket.

use crate::resource::path::CLOSE;
use crate::resource::socket::diag;
use anyhow::{Context, Result};
use netlink_sys::protocols::NETLINK_AUDIT;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

/// The initial pid namespace: PROC_PID_INIT_INO. Nobody in another one can be auditd (audit_netlink_ok()).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Why a socket cannot be dumped, by its inode, and a hint.
///
/// # Errors
/// If an audit socket cannot be made, or the answer cannot be read.
pub(super) fn obstacle(ino: u64) -> Result<Option<(&'static str, &'static str)>> {
    if fs::metadata("/proc/self/ns/pid").context("/proc/self/ns/pid")?.ino() != FIRST_PID_NAMESPACE {
        return Ok(None);
    }
    Ok(match parse(&ask()?).context("answer to AUDIT_GET cut off")? {
        Ok(auditd) if auditd != 0 && has(auditd, ino)? => {
            Some(("the kernel sends its audit records to this socket", CLOSE))
        }
        // Refused outside of the initial user namespace, where nobody can be auditd either.
        Ok(_) | Err(Errno::ECONNREFUSED) => None,
        Err(Errno::EPERM) => Some((
            "crr may not ask whether the kernel sends its audit records to this socket",
            "run crr as root, or give it CAP_AUDIT_CONTROL",
        )),
        Err(errno) => return Err(errno).context("AUDIT_GET"),
    })
}

const AUDIT_GET: u16 = 1000;
const NLMSG_ERROR: u16 = 2;
/// Bytes of `struct nlmsghdr`.
const HEADER: u8 = 16;

fn ask() -> Result<Vec<u8>> {
    const NLM_F_REQUEST: u16 = 1;
    let mut request = vec![0; usize::from(HEADER)];
    request[0] = HEADER;
    request[4..6].copy_from_slice(&AUDIT_GET.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    let socket = diag::send(NETLINK_AUDIT, &request).context("AUDIT_GET")?;
    // The answer comes from a thread of the kernel, which may not be had.
    let patience = TimeVal::seconds(1);
    setsockopt(&socket, ReceiveTimeout, &patience).context("SO_RCVTIMEO")?;
    Ok(socket.recv_from_full().context("AUDIT_GET")?.0)
}

/// The pid of auditd, 0 for none: of `struct audit_status` after a header, include/uapi/linux/audit.h.
fn parse(answer: &[u8]) -> Option<nix::Result<i32>> {
    const PID: usize = 12;
    let contents = answer.get(usize::from(HEADER)..)?;
    match u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?) {
        AUDIT_GET => Some(Ok(i32::from_ne_bytes(*contents.get(PID..)?.first_chunk()?))),
        NLMSG_ERROR => Some(Err(Errno::from_raw(-i32::from_ne_bytes(*contents.first_chunk()?)))),
        _ => None,
    }
}

/// Whether a process has a socket.
fn has(pid: i32, ino: u64) -> Result<bool> {
    let socket = format!("socket:[{ino}]");
    let path = format!("/proc/{pid}/fd");
    let fds = match fs::read_dir(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        fds => fds.with_context(|| path.clone())?,
    };
    for fd in fds {
        match fs::read_link(fd?.path()) {
            Ok(link) if link.as_os_str() == socket.as_str() => return Ok(true),
            // Another file, or closed meanwhile.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(path),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let mut status = vec![60, 0, 0, 0, 0xe8, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        status.extend([0; 12]);
        status.extend(4711i32.to_ne_bytes());
        status.extend([0; 28]);
        assert_eq!(parse(&status), Some(Ok(4711)));
        let mut error = vec![36, 0, 0, 0, 2, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0];
        error.extend((-1i32).to_ne_bytes());
        error.extend([0; 16]);
        assert_eq!(parse(&error), Some(Err(Errno::EPERM)));
        assert_eq!(parse(&status[..20]), None);
    }
}
