//! Listening sockets that whoever started this process passed to it (sd_listen_fds(3)): each can be had once at a time.

use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Mutex};

use listenfd::ListenFd;
use socket2::SockRef;

use super::state::lock;
use crate::error::{Cause, Error, Operation, Result};

/// What is asked for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Which<'a> {
    All,
    Named(&'a str),
    Descriptor(usize),
}

/// One descriptor that was passed.
struct Passed {
    name: String,
    /// None if it is no listening stream socket.
    socket: Option<Arc<OwnedFd>>,
}

/// Read once, for the descriptors are owned from then on.
static PASSED: LazyLock<Mutex<Result<Vec<Passed>, Fault>>> = LazyLock::new(|| Mutex::new(from_environment()));

/// What is wrong with a variable.
struct Fault {
    name: &'static str,
    problem: String,
}

/// The first one that is passed.
const FIRST: usize = 3;

impl Which<'_> {
    /// Reads `systemd`, `systemd:NAME` or `fd:N`; `None` if it is something else.
    pub(super) fn parse(text: &str) -> Option<Result<Which<'_>>> {
        if let Some(number) = text.strip_prefix("fd:") {
            let problem = || Cause::Address { problem: format!("`{number}` is not a descriptor's number") };
            let failed = |_| Error::new(Operation::Listen, problem()).at(text);
            return Some(number.parse().map(Which::Descriptor).map_err(failed));
        }
        match text.strip_prefix("systemd")? {
            "" => Some(Ok(Which::All)),
            name => name.strip_prefix(':').map(|name| Ok(Which::Named(name))),
        }
    }

    fn includes(self, index: usize, passed: &Passed) -> bool {
        match self {
            Which::All => true,
            Which::Named(name) => passed.name == name,
            Which::Descriptor(number) => number == FIRST + index,
        }
    }
}

/// Takes what was passed and nobody has; the sockets are free again when the last clone of each has gone. Errors name `text`.
pub(super) fn take(which: Which<'_>, text: &str) -> Result<Vec<Arc<OwnedFd>>> {
    let failed = |cause| Error::new(Operation::Listen, cause).at(text);
    let not_found = |problem: String| failed(Cause::NotFound { problem });
    let passed = lock(&PASSED);
    let variable = |fault: &Fault| Cause::Variable { name: fault.name, problem: fault.problem.clone() };
    let passed = passed.as_ref().map_err(|fault| failed(variable(fault)))?;
    let mut taken = Vec::new();
    for (index, each) in passed.iter().enumerate().filter(|(index, each)| which.includes(*index, each)) {
        let number = FIRST + index;
        match &each.socket {
            None => return Err(not_found(format!("descriptor {number} is no listening stream socket"))),
            Some(socket) if Arc::strong_count(socket) > 1 => {
                // Whoever wants all wants the others.
                if which != Which::All {
                    return Err(not_found(format!("descriptor {number} is in use already")));
                }
            }
            Some(socket) => taken.push(socket.clone()),
        }
    }
    Ok(taken)
}

/// The error if nothing was found.
pub(super) fn nothing(text: &str) -> Error {
    let passed = lock(&PASSED);
    let problem = match passed.as_ref() {
        Ok(passed) if passed.is_empty() => String::from("no sockets were passed (`LISTEN_FDS` is not set)"),
        Ok(passed) => {
            let each =
                passed.iter().zip(FIRST..).map(|(passed, number)| format!("{number} `{}`", passed.name));
            format!("no socket of that kind is free; passed were {}", each.collect::<Vec<_>>().join(", "))
        }
        Err(fault) => fault.problem.clone(),
    };
    Error::new(Operation::Listen, Cause::NotFound { problem }).at(text)
}

fn from_environment() -> Result<Vec<Passed>, Fault> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some(count) = variable("LISTEN_FDS") else { return Ok(Vec::new()) };
    let own = std::process::id();
    match variable("LISTEN_PID") {
        Some(process) if process.parse() == Ok(own) => {}
        Some(process) => {
            let problem = format!("the sockets are for process {process}, and this is {own}");
            return Err(Fault { name: "LISTEN_PID", problem });
        }
        None => return Err(Fault { name: "LISTEN_PID", problem: String::from("is not set") }),
    }
    if count.parse::<u16>().is_err() {
        return Err(Fault { name: "LISTEN_FDS", problem: format!("`{count}` is not a number of sockets") });
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    // Takes the variables out of the environment as well, so that no child believes them.
    let mut descriptors = ListenFd::from_env();
    let mut passed = Vec::new();
    for index in 0..descriptors.len() {
        let tcp = descriptors.take_tcp_listener(index).ok().flatten().map(OwnedFd::from);
        let unix = || descriptors.take_unix_listener(index).ok().flatten().map(OwnedFd::from);
        let listens = |socket: &OwnedFd| SockRef::from(socket).is_listener().unwrap_or_default();
        let socket = tcp.or_else(unix).filter(listens).map(Arc::new);
        // What systemd calls those without a name.
        let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
        passed.push(Passed { name, socket });
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_and_the_rest_is_an_address() {
        assert_eq!(Which::parse("systemd").unwrap().unwrap(), Which::All);
        assert_eq!(Which::parse("systemd:http").unwrap().unwrap(), Which::Named("http"));
        assert_eq!(Which::parse("fd:3").unwrap().unwrap(), Which::Descriptor(3));
        let error = Which::parse("fd:three").unwrap().unwrap_err();
        assert_eq!(error.to_string(), "listen on fd:three: `three` is not a descriptor's number");
        assert!(Which::parse("systemd.example:80").is_none());
        assert!(Which::parse("127.0.0.1:80").is_none());
    }

    #[test]
    fn without_a_service_manager_there_is_nothing() {
        // Tests are not started by one.
        assert!(take(Which::All, "systemd").unwrap().is_empty());
        let error = nothing("systemd").to_string();
        assert_eq!(error, "listen on systemd: no sockets were passed (`LISTEN_FDS` is not set)");
    }
}
