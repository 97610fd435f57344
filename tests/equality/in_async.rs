//! Scripts in async style.

use std::time::Duration;

use bytes::Bytes;
use wharf::{Client, Connection, Error, Remote, Result};

use crate::common::until;

use super::in_events::PIECE;
use super::script::{Handle, Script, Step, Stop, Telling};

/// Performs a script on a connection that a server has accepted.
pub(crate) async fn serve(mut conn: Connection, script: Script, telling: Telling) -> Result<()> {
    let (closed, draining) = (conn.closed(), conn.draining());
    let (of_end, of_drain) = (telling.clone(), telling.clone());
    drop(wharf::spawn(async move {
        let reason = closed.await;
        of_end.note().ends.push(reason);
    }));
    drop(wharf::spawn(async move {
        draining.await;
        of_drain.note().is_draining = true;
    }));
    perform(&mut conn, &script, &telling).await
}

/// Connects and performs a script.
pub(crate) async fn connect(client: Client, script: Script, telling: Telling) {
    let mut conn = match client.open().await {
        Ok(conn) => conn,
        Err(error) => return telling.failed(&error),
    };
    let closed = conn.closed();
    drop(perform(&mut conn, &script, &telling).await);
    drop(conn);
    let reason = closed.await;
    telling.note().ends.push(reason);
}

async fn perform(conn: &mut Connection, script: &Script, telling: &Telling) -> Result<()> {
    #[cfg(feature = "tls")]
    {
        telling.note().is_secured = conn.tls().is_some();
    }
    let mut at = 0;
    while let Some(step) = script.step(at) {
        if let Step::Fail = step {
            telling.note().stop = Some(Stop::Done);
            return Err(Error::other("as told by the script"));
        }
        if let Err(error) = take(conn, step, telling).await {
            telling.stopped_by(&error);
            return Ok(());
        }
        at += 1;
        telling.note().steps = at;
    }
    telling.note().stop = Some(Stop::Done);
    Ok(())
}

async fn take(conn: &mut Connection, step: &Step, telling: &Telling) -> Result<()> {
    match step {
        Step::Send(bytes) => conn.send(bytes).await?,
        Step::SendInAttempts(bytes, within) => {
            // Cancel safe: one that is late has sent nothing.
            while let Err(error) = conn.send(bytes).within(*within).await {
                if !error.is_timeout() || error.is_closed() {
                    return Err(error);
                }
                telling.note().late += 1;
            }
        }
        Step::Receive(len) => {
            let mut bytes = vec![0; *len];
            conn.recv_exact(&mut bytes).await?;
            telling.note().received.extend_from_slice(&bytes);
        }
        Step::ReceiveLate(len, within) => {
            let late = conn.recv_exact(&mut vec![0; *len]).within(*within).await.expect_err("it is late");
            assert!(late.is_timeout() && !late.is_closed(), "{late}");
            telling.note().late += 1;
        }
        Step::ReceiveAll => {
            while let Some(chunk) = conn.recv_chunk().await? {
                telling.note().received.extend_from_slice(&chunk);
            }
        }
        Step::Echo => {
            while let Some(chunk) = conn.recv_chunk().await? {
                telling.note().received.extend_from_slice(&chunk);
                conn.send(&chunk).await?;
            }
        }
        Step::Finish => conn.finish().await?,
        Step::Deadline(after) => conn.set_deadline(*after),
        Step::GiveHandle => telling.note().handle = Some(Handle::Worker(conn.remote())),
        Step::Reset => drop(conn.reset().await),
        Step::PanicOn(byte) => assert_ne!(telling.last(), Some(*byte), "as told by the script"),
        Step::Fail => unreachable!("it is the script that fails"),
        Step::Await(gate) => until("the gate is open", || gate.is_open()).await,
        Step::Drip(every) => drip(conn, *every).await?,
        Step::Exchange(bytes, gate) => {
            pour(conn.remote(), bytes.clone());
            until("the gate is open", || gate.is_open()).await;
            let mut received = vec![0; bytes.len()];
            conn.recv_exact(&mut received).await?;
            telling.note().received.extend_from_slice(&received);
        }
    }
    Ok(())
}

/// Sends all of it, beside whatever else is done.
fn pour(remote: Remote, bytes: Bytes) {
    drop(wharf::spawn(async move {
        for at in (0..bytes.len()).step_by(PIECE) {
            let piece = bytes.slice(at..bytes.len().min(at + PIECE));
            let sent = || remote.send(piece.clone()).is_ok() || remote.close_reason().is_some();
            until("there is room", sent).await;
        }
    }));
}

async fn drip(conn: &mut Connection, every: Duration) -> Result<()> {
    while conn.hangup().within(every).await.is_err() {
        conn.send(b"x").await?;
    }
    Ok(())
}
