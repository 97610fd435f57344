//! HAProxy in TCP mode: this process becomes one, so that its CPU time is counted as any peer's.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

use anyhow::{Context, Result, bail};
use socket2::SockRef;

use super::{Peer, announce, listen};

pub const PEER: Peer = Peer {
    name: "relay_haproxy",
    about: "HAProxy in TCP mode, one thread, buffers of 16 KiB",
    ..Peer::relay(|target| serve(target, ""))
};

pub const SPLICE: Peer = Peer {
    name: "relay_haproxy_splice",
    about: "the same with splice(2) where it thinks that it pays",
    ..Peer::relay(|target| serve(target, "option splice-auto"))
};

fn serve(target: SocketAddr, option: &str) -> Result<()> {
    let listener = listen()?;
    SockRef::from(&listener).set_cloexec(false)?;
    let configuration = format!(
        "global
             nbthread 1
             maxconn 2000
         defaults
             mode tcp
             timeout connect 5s
             timeout client 60s
             timeout server 60s
             {option}
         listen relay
             bind fd@{}
             server target {target}
",
        listener.as_raw_fd()
    );
    // It is read from the descriptor, so the name may go before the program comes.
    let path = env::temp_dir().join(format!("wharf-bench-haproxy-{}", process::id()));
    let file = fs::write(&path, configuration).and_then(|()| File::open(&path));
    fs::remove_file(&path).ok();
    let file = file.with_context(|| format!("write {}", path.display()))?;

    // Whoever connects from now on waits in the backlog.
    announce(listener.local_addr()?)?;
    for program in PROGRAMS {
        let error = Command::new(program)
            .args(["-q", "-db", "-f", "/dev/stdin"])
            .stdin(file.try_clone()?)
            .exec();
        if error.kind() != ErrorKind::NotFound {
            return Err(error).context(program);
        }
    }
    bail!("haproxy is not installed")
}

/// Debian has it where only root looks.
const PROGRAMS: [&str; 2] = ["haproxy", "/usr/sbin/haproxy"];
