//! `wharf serve --style blocking`: the same services on a thread for each connection, without workers.

use std::thread;

use wharf::blocking::{Connection, Listener, ServerHandle};
use wharf::systemd::State;
use wharf::{Error, Result, ServerEvent};

use crate::args::Service;
use crate::certificates::Certificates;
use crate::exit::{Failure, note};
use crate::operator;
use crate::options::Admission;
use crate::serve;
use crate::services::{PATTERN, Pingpong, QUIET};
use crate::settings::{CommandLine, Settings};

/// What is read at once.
const READ_SIZE: usize = 16 * 1024;

/// Serves until a signal has ended it.
pub(crate) fn run(
    line: CommandLine,
    settings: Settings,
    certificates: Option<&Certificates>,
) -> Result<(), Failure> {
    let quiet = settings.serve.quiet;
    let server = serve_as_asked(&settings, certificates).map_err(|failure| settings.failure(failure))?;
    let bounds = serve::bounds(&settings.serve, &server);
    operator::obey_signals(line, settings, server.clone(), certificates.cloned())?;
    certificates.map_or(Ok(()), Certificates::watch)?;
    serve::announce([server.local_addr()]).map_err(Failure::of_output)?;
    drop(wharf::systemd::notify(&[State::Ready]));
    if !quiet {
        note(format_args!("a thread for each connection, {} at most", server.connections_max()));
        bounds.iter().for_each(note);
        certificates.into_iter().flat_map(Certificates::lines).for_each(note);
    }
    let stats = server.wait()?;
    if !quiet {
        note(serve::summary(&stats));
    }
    Ok(())
}

/// Why it holds as many connections as it does.
pub(crate) fn reason(server: &ServerHandle, admission: &Admission) -> String {
    match admission.max_connections {
        None => String::from("as many as there are threads by default"),
        Some(asked) if asked as usize > server.connections_max() => {
            String::from("from --max-connections when it was started: that many threads there may be")
        }
        Some(_) => String::from("from --max-connections"),
    }
}

fn serve_as_asked(settings: &Settings, certificates: Option<&Certificates>) -> Result<ServerHandle, Failure> {
    let service = settings.serve.service;
    let listener =
        settings.serve.options.blocking_listener(service)?.ok_or_else(|| settings.without_listener())?;
    let listener = match certificates {
        Some(certificates) => listener.tls(certificates.acceptor()),
        None => listener,
    };
    let listener = listener.watch(|event| {
        if let ServerEvent::Draining { .. } = event {
            drop(wharf::systemd::notify(&[State::Stopping]));
        }
    });
    Ok(start(listener, service)?)
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
