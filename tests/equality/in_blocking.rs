//! Scripts in blocking style.

use std::thread;
use std::time::Duration;

use wharf::blocking::Connection;
use wharf::{Client, Error, Result};

use super::script::{Handle, Script, Step, Stop, Telling};

/// Performs a script on a connection that a listener has accepted.
pub(crate) fn serve(conn: &mut Connection, script: &Script, telling: &Telling) -> Result<()> {
    perform(conn, script, telling)?;
    let reason = conn.close();
    telling.note().ends.push(reason);
    Ok(())
}

/// Connects and performs a script, on a thread of its own.
pub(crate) fn connect(client: Client, script: Script, telling: Telling) {
    thread::spawn(move || match client.open_blocking() {
        Ok(mut conn) => serve(&mut conn, &script, &telling).expect("no client fails"),
        Err(error) => telling.failed(&error),
    });
}

fn perform(conn: &mut Connection, script: &Script, telling: &Telling) -> Result<()> {
    let mut at = 0;
    while let Some(step) = script.step(at) {
        if let Step::Fail = step {
            telling.note().stop = Some(Stop::Done);
            return Err(Error::other("as told by the script"));
        }
        if let Err(error) = take(conn, step, telling) {
            telling.stopped_by(&error);
            return Ok(());
        }
        #[cfg(feature = "tls")]
        {
            telling.note().is_secured = conn.tls().is_some();
        }
        at += 1;
        telling.note().steps = at;
    }
    telling.note().stop = Some(Stop::Done);
    Ok(())
}

fn take(conn: &mut Connection, step: &Step, telling: &Telling) -> Result<()> {
    match step {
        Step::Send(bytes) => conn.send(bytes)?,
        Step::SendInAttempts(bytes, within) => {
            // One that is late tells how much of the end it has not sent.
            let mut rest = &bytes[..];
            while let Err(error) = conn.within(*within).send(rest) {
                let Some(unsent) = error.unsent().filter(|_| error.is_timeout() && !error.is_closed()) else {
                    return Err(error);
                };
                rest = &rest[rest.len() - unsent..];
                telling.note().late += 1;
            }
        }
        Step::Receive(len) => {
            let mut bytes = vec![0; *len];
            conn.recv_exact(&mut bytes)?;
            telling.note().received.extend_from_slice(&bytes);
        }
        Step::ReceiveLate(len, within) => {
            let late = conn.within(*within).recv_exact(&mut vec![0; *len]).expect_err("it is late");
            assert!(late.is_timeout() && !late.is_closed(), "{late}");
            telling.note().late += 1;
        }
        Step::ReceiveAll => {
            while let Some(chunk) = conn.recv_chunk()? {
                telling.note().received.extend_from_slice(&chunk);
            }
        }
        Step::Echo => {
            while let Some(chunk) = conn.recv_chunk()? {
                telling.note().received.extend_from_slice(&chunk);
                conn.send(&chunk)?;
            }
        }
        Step::Finish => conn.finish()?,
        Step::Deadline(after) => conn.set_deadline(*after),
        Step::GiveHandle => telling.note().handle = Some(Handle::Thread(conn.remote()?)),
        Step::Reset => drop(conn.reset()),
        Step::PanicOn(byte) => assert_ne!(telling.last(), Some(*byte), "as told by the script"),
        Step::Fail => unreachable!("it is the script that fails"),
        Step::Await(gate) => {
            while !gate.is_open() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        Step::Drip(_) | Step::Exchange(..) => unreachable!("it is for peers"),
    }
    Ok(())
}
