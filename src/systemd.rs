//! Telling the service manager what the service is about: sd_notify(3), without its library.
//!
//! [`Server::notify_systemd`](crate::Server::notify_systemd) does what a service of one server needs. [`notify`] is for
//! programs that have several, or reload.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::error::{Error, Operation, Result};

/// What a service can say of itself.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State<'a> {
    /// It serves; or it has finished reloading.
    Ready,
    /// It reads its configuration again; [`State::Ready`] ends that.
    Reloading,
    /// It is about to end.
    Stopping,
    /// This is what it is doing, in a line for humans.
    Status(&'a str),
    /// This is its main process from now on.
    MainProcess(u32),
}

/// Tells the service manager about this service, all of `states` at once. Returns whether there is one to tell: the
/// environment variable `NOTIFY_SOCKET` says where.
///
/// # Errors
/// If it cannot be told.
///
/// ```
/// use wharf::systemd::{State, notify};
///
/// notify(&[State::Reloading])?;
/// // read the configuration again
/// notify(&[State::Ready, State::Status("serving")])?;
/// # Ok::<(), wharf::Error>(())
/// ```
pub fn notify(states: &[State<'_>]) -> Result<bool> {
    let Some(target) = std::env::var_os("NOTIFY_SOCKET").filter(|target| !target.is_empty()) else {
        return Ok(false);
    };
    let sent = send(&target, message(states).as_bytes());
    sent.map(|()| true).map_err(|error| Error::os(Operation::Notify, error).at(target.display()))
}

/// Never waits: a manager that does not read is told nothing.
fn send(target: &OsStr, message: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match target.as_bytes().strip_prefix(b"@") {
        Some(name) => connect_abstract(&socket, name)?,
        None => socket.connect(target)?,
    }
    socket.send(message).map(drop)
}

#[cfg(target_os = "linux")]
fn connect_abstract(socket: &UnixDatagram, name: &[u8]) -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn connect_abstract(_socket: &UnixDatagram, _name: &[u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// One assignment in each line.
fn message(states: &[State<'_>]) -> String {
    let line = |state: &State<'_>| match state {
        State::Ready => String::from("READY=1\n"),
        // A service of `Type=notify-reload` has to tell when.
        State::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={}\n", monotonic_us()),
        State::Stopping => String::from("STOPPING=1\n"),
        // A line that goes on would be another assignment.
        State::Status(status) => format!("STATUS={}\n", status.replace('\n', " ")),
        State::MainProcess(process) => format!("MAINPID={process}\n"),
    };
    states.iter().map(line).collect()
}

fn monotonic_us() -> u128 {
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic));
    now.expect("the clock began at zero").as_micros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_an_assignment_in_each_line() {
        let states = [State::MainProcess(7), State::Ready, State::Status("a\nREADY=1"), State::Stopping];
        assert_eq!(message(&states), "MAINPID=7\nREADY=1\nSTATUS=a READY=1\nSTOPPING=1\n");
        assert!(message(&[State::Reloading]).starts_with("RELOADING=1\nMONOTONIC_USEC="));
    }

    #[test]
    fn a_path_and_an_abstract_name_are_reached_alike() {
        let path = std::env::temp_dir().join(format!("wharf-notify-{}", std::process::id()));
        let manager = UnixDatagram::bind(&path).expect("it is bound");
        send(path.as_os_str(), b"READY=1\n").expect("it is read");
        let mut message = [0; 64];
        assert_eq!(manager.recv(&mut message).expect("it came"), 8);
        std::fs::remove_file(&path).expect("it was there");
        assert!(send(path.as_os_str(), b"READY=1\n").is_err());

        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt;
            let name = format!("wharf-notify-{}", std::process::id());
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
            let manager = UnixDatagram::bind_addr(&address).expect("it is bound");
            send(OsStr::new(&format!("@{name}")), b"STOPPING=1\n").expect("it is read");
            assert_eq!(manager.recv(&mut message).expect("it came"), 11);
        }
    }
}
