//! Sockets as the options want them: listening ones, and those that are to be connected.

mod unix;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::SocketAddr;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::config::SocketOptions;
#[cfg(target_os = "linux")]
use crate::engine::{fast_open, late_port};
use crate::error::plain;

pub(crate) use unix::{is_socket, listen_unix};

/// Makes a listening socket. What it is set to, its connections inherit, on Linux at least.
pub(crate) fn listen(address: SocketAddr, options: &SocketOptions) -> io::Result<std::net::TcpListener> {
    let socket = new(Domain::for_address(address))?;
    // A restarted server binds again although old connections are in TIME_WAIT (socket(7), SO_REUSEADDR).
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        set("only_v6", socket.set_only_v6(options.only_v6))?;
    }
    if options.reuse_port {
        set("reuse_port", socket.set_reuse_port(true))?;
    }
    #[cfg(target_os = "linux")]
    if let Some(queue) = options.fast_open {
        set("fast_open", fast_open::set_fast_open(socket.as_fd(), queue.try_into().unwrap_or(i32::MAX)))?;
    }
    apply(&SockRef::from(&socket), Domain::for_address(address), options)?;
    socket.bind(&address.into())?;
    socket.listen(options.backlog.try_into().unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// Makes a socket that is to be connected. Some options have no effect, or not the whole, on one that is.
pub(crate) fn unconnected(domain: Domain, options: &SocketOptions) -> io::Result<Socket> {
    let socket = new(domain)?;
    apply(&SockRef::from(&socket), domain, options)?;
    Ok(socket)
}

/// Gives a socket that is to be connected its local address.
pub(crate) fn bind_source(socket: &Socket, source: SocketAddr) -> io::Result<()> {
    if source.port() == 0 {
        #[cfg(target_os = "linux")]
        late_port::pick_port_late(socket.as_fd())?;
    } else {
        // So that the port can be that of connections to other servers too, and of one to this that is in TIME_WAIT (socket(7)).
        socket.set_reuse_address(true)?;
    }
    set("bind", socket.bind(&source.into()))
}

fn new(domain: Domain) -> io::Result<Socket> {
    let protocol = (domain != Domain::UNIX).then_some(Protocol::TCP);
    let socket = Socket::new(domain, STREAM, protocol)?;
    if cfg!(not(target_os = "linux")) {
        socket.set_nonblocking(true)?;
    }
    Ok(socket)
}

/// The type of a socket, which on Linux can be made non-blocking in the same call.
#[cfg(target_os = "linux")]
const STREAM: Type = Type::STREAM.nonblocking();
#[cfg(not(target_os = "linux"))]
const STREAM: Type = Type::STREAM;

/// Sets the options that listeners and connections have in common.
/// A Unix socket has none of TCP's.
fn apply(socket: &SockRef<'_>, domain: Domain, options: &SocketOptions) -> io::Result<()> {
    if domain != Domain::UNIX {
        apply_tcp(socket, domain, options)?;
    }
    if let Some(bytes) = options.receive_buffer {
        set("receive_buffer", socket.set_recv_buffer_size(bytes))?;
    }
    if let Some(bytes) = options.send_buffer {
        set("send_buffer", socket.set_send_buffer_size(bytes))?;
    }
    Ok(())
}

fn apply_tcp(socket: &SockRef<'_>, domain: Domain, options: &SocketOptions) -> io::Result<()> {
    if options.nodelay {
        set("nodelay", socket.set_tcp_nodelay(true))?;
    }
    if let Some(after) = options.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(after)
            .with_interval(options.keepalive_interval)
            .with_retries(options.keepalive_count);
        set("keepalive", socket.set_tcp_keepalive(&keepalive))?;
    }
    if options.linger.is_some() {
        set("linger", socket.set_linger(options.linger))?;
    }
    if let Some(code_point) = options.dscp {
        set("dscp", set_dscp(socket, domain, code_point))?;
    }
    apply_linux(socket, options)
}

#[cfg(target_os = "linux")]
fn apply_linux(socket: &SockRef<'_>, options: &SocketOptions) -> io::Result<()> {
    if options.user_timeout.is_some() {
        set("user_timeout", socket.set_tcp_user_timeout(options.user_timeout))?;
    }
    if let Some(device) = &options.device {
        set("device", socket.bind_device(Some(device.as_bytes())))?;
    }
    if let Some(mark) = options.mark {
        set("mark", socket.set_mark(mark))?;
    }
    Ok(())
}

/// What only Linux has was refused before, or is ignored.
#[cfg(not(target_os = "linux"))]
fn apply_linux(_: &SockRef<'_>, _: &SocketOptions) -> io::Result<()> {
    Ok(())
}

/// The code point is the upper six bits of the byte; the lower two are the kernel's (ECN, RFC 3168).
fn set_dscp(socket: &SockRef<'_>, domain: Domain, code_point: u8) -> io::Result<()> {
    let byte = u32::from(code_point) << 2;
    if domain == Domain::IPV6 {
        socket.set_tclass_v6(byte)?;
    }
    // A dual-stack socket of Linux has both: this one is for its IPv4 connections.
    if domain == Domain::IPV4 || cfg!(target_os = "linux") {
        socket.set_tos_v4(byte)?;
    }
    Ok(())
}

/// Names the option that could not be set.
fn set(name: &'static str, result: io::Result<()>) -> io::Result<()> {
    result.map_err(|error| io::Error::new(error.kind(), OptionRefused { name, error }))
}

/// The system refused a socket option.
#[derive(Debug)]
pub(crate) struct OptionRefused {
    name: &'static str,
    error: io::Error,
}

impl fmt::Display for OptionRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "option `{}`: {}", self.name, plain(&self.error))
    }
}

impl StdError for OptionRefused {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.error)
    }
}
