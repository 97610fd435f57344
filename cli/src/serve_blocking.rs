//! `wharf serve --style blocking`: the same services on a thread for each connection, without workers.

use std::fmt;
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGUSR1, SIGUSR2};
use wharf::blocking::{Connection, Listener, ServerHandle};
use wharf::systemd::State;
use wharf::{Error, Result};

use crate::args::Service;
use crate::certificates::Certificates;
use crate::exit::{self, Failure, note};
use crate::serve;
use crate::services::{PATTERN, Pingpong, QUIET};
use crate::settings::Settings;

/// What is read at once.
const READ_SIZE: usize = 16 * 1024;

/// Serves until a signal has ended it.
pub(crate) fn run(settings: &Settings, certificates: Option<&Certificates>) -> Result<(), Failure> {
    let args = &settings.serve;
    let start = || {
        let listener = args.options.blocking_listener(args.service)?;
        let listener = listener.ok_or_else(|| settings.without_listener())?;
        let listener = match certificates {
            Some(certificates) => listener.tls(certificates.acceptor()),
            None => listener,
        };
        Ok(start(listener, args.service)?)
    };
    let server = start().map_err(|failure: Failure| settings.failure(failure))?;
    let operator = Operator {
        quiet: args.quiet,
        drain: args.options.times.drain,
        draining: false,
        server: server.clone(),
        certificates: certificates.cloned(),
    };
    operator.obey_signals()?;
    certificates.map_or(Ok(()), Certificates::watch)?;
    serve::announce([server.local_addr()]).map_err(Failure::of_output)?;
    drop(wharf::systemd::notify(&[State::Ready]));
    if !args.quiet {
        note(format_args!("a thread for each connection, {} at most", server.connections_max()));
        certificates.into_iter().flat_map(Certificates::lines).for_each(note);
    }
    let stats = server.wait()?;
    if !args.quiet {
        note(serve::summary(&stats));
    }
    Ok(())
}

fn start(listener: Listener, service: Service) -> Result<ServerHandle> {
    match service {
        Service::Echo => listener.serve(echo),
        Service::Discard => listener.serve(discard),
        Service::Chargen => listener.serve(chargen),
        Service::Pingpong => listener.serve(pingpong),
    }
}

fn echo(mut conn: Connection) -> Result<()> {
    let mut buf = vec![0; READ_SIZE];
    loop {
        match next(&mut conn, &mut buf)? {
            0 => return Ok(()),
            n => conn.send(&buf[..n])?,
        }
    }
}

fn discard(mut conn: Connection) -> Result<()> {
    let mut buf = vec![0; READ_SIZE];
    while next(&mut conn, &mut buf)? > 0 {}
    Ok(())
}

fn chargen(conn: Connection) -> Result<()> {
    let (mut read, mut write) = conn.split()?;
    let remote = write.remote()?;
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut buf = [0; 1024];
            while matches!(read.recv(&mut buf), Ok(1..)) {}
            // Who ends his side has seen enough.
            remote.close();
        });
        while !write.is_draining() && write.close_reason().is_none() {
            if let Err(error) = write.send(PATTERN.as_slice()) {
                return if error.is_closed() { Ok(()) } else { Err(error) };
            }
        }
        // The other thread's wait ends by that.
        write.remote()?.close();
        Ok(())
    })
}

fn pingpong(mut conn: Connection) -> Result<()> {
    let (mut game, mut buf) = (Pingpong::default(), vec![0; READ_SIZE]);
    loop {
        let read = next(&mut conn, &mut buf)?;
        if read == 0 {
            return Ok(());
        }
        let answer = game.play(&buf[..read]);
        conn.send(&answer.bytes)?;
        if answer.is_last {
            return Err(Error::other("the peer sent something else than `ping`"));
        }
    }
}

/// The next bytes; none when the peer has ended, or when the server drains and nothing has come for a while.
fn next(conn: &mut Connection, buf: &mut [u8]) -> Result<usize> {
    if conn.ready()? {
        return conn.recv(buf);
    }
    match conn.within(QUIET).recv(buf) {
        Err(error) if error.is_timeout() && conn.close_reason().is_none() => Ok(0),
        received => received,
    }
}

struct Operator {
    quiet: bool,
    drain: Duration,
    draining: bool,
    server: ServerHandle,
    certificates: Option<Certificates>,
}

impl Operator {
    fn obey_signals(mut self) -> Result<(), Failure> {
        let [interrupt, terminate] = exit::ENDING;
        exit::on_signals(&[interrupt, terminate, SIGHUP, SIGUSR1, SIGUSR2], move |signal| self.obey(signal))
    }

    fn obey(&mut self, signal: i32) {
        match (signal, &self.certificates) {
            (SIGHUP, Some(certificates)) => certificates.reload(),
            (SIGHUP, None) => self.say("SIGHUP: in blocking style only certificates can be read again"),
            (SIGUSR1, _) => exit::print(serve::summary(&self.server.stats())),
            (SIGUSR2, _) => self.say("SIGUSR2: a server in blocking style cannot be suspended"),
            _ => self.end(),
        }
    }

    fn end(&mut self) {
        let within = if self.draining { Duration::ZERO } else { self.drain };
        if self.draining {
            self.say("stopping at once");
        } else {
            drop(wharf::systemd::notify(&[State::Stopping]));
            self.say(serve::draining(self.server.connections(), within));
        }
        self.draining = true;
        self.server.drain(within);
    }

    fn say(&self, line: impl fmt::Display) {
        if !self.quiet {
            note(line);
        }
    }
}
