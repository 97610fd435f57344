//! Who is at the other end of an upgrade socket, as the kernel tells it, and whether that may be.

use std::io;
use std::os::fd::AsFd;

/// The process at the other end.
#[derive(Copy, Clone, Debug)]
pub(super) struct Peer {
    pub(super) process: u32,
    user: u32,
}

/// Who is at the other end of `stream`, if it is one of our own user's, or of root's.
pub(super) fn trusted(stream: impl AsFd) -> io::Result<Peer> {
    let peer = of(stream)?;
    let own = rustix::process::geteuid().as_raw();
    if !may_be_trusted(peer.user, own) {
        let problem = format!("it belongs to user {}, and neither to user {own} nor to root", peer.user);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    Ok(peer)
}

/// Root could do as it likes anyway. The reverse does not hold: root does not trust other users.
fn may_be_trusted(user: u32, own: u32) -> bool {
    user == own || user == 0
}

#[cfg(target_os = "linux")]
fn of(stream: impl AsFd) -> io::Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(Peer {
        process: credentials.pid.as_raw_nonzero().get().unsigned_abs(),
        user: credentials.uid.as_raw(),
    })
}

#[cfg(not(target_os = "linux"))]
fn of(_stream: impl AsFd) -> io::Result<Peer> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_user_and_root_are_trusted() {
        assert!(may_be_trusted(1000, 1000));
        assert!(may_be_trusted(0, 1000));
        assert!(may_be_trusted(0, 0));
        assert!(!may_be_trusted(1001, 1000));
        assert!(!may_be_trusted(1000, 0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_kernel_tells_who_is_at_the_other_end() {
        let (near, _far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert_eq!(trusted(&near).expect("it is us").process, std::process::id());
    }
}
