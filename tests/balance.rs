//! Which worker gets a connection: none has many more than the others, however they come and go.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::net::SocketAddr;
use std::time::Duration;

use wharf::{Client, Connection, Deadlines, Limits, ServerHandle};

use common::behaviours::*;
use common::*;

const CONNECTIONS: usize = 1000;
const WORKERS: usize = 2;

/// No worker has more than 10 % above the mean.
fn assert_balanced(server: &ServerHandle) {
    let loads = server.connections_by_worker();
    let total: usize = loads.iter().sum();
    assert_eq!((loads.len(), total), (WORKERS, server.connections()));
    let most = loads.iter().max().unwrap();
    assert!(most * WORKERS * 10 <= total * 11, "{loads:?}");
}

/// With virtual time it is the first seed that has them all: a thousand take a while.
fn connections(world: &World) -> usize {
    if world.seed() == 0 { CONNECTIONS } else { CONNECTIONS / 10 }
}

fn start(world: &mut World) -> ServerHandle {
    raise_descriptor_limit();
    // A worker that the machine leaves waiting is not one that is blocked. And virtual time passes while a thousand come one after the other.
    let deadlines = Deadlines::default().idle(Duration::from_secs(3600));
    let limits = Limits::default().connections(4 * CONNECTIONS);
    world
        .serve_with(Echo, |server| server.workers(WORKERS).limits(limits).deadlines(deadlines).watchdog(None))
}

/// So many connections, asked for all at once; or as many at once as a simulated listener queues.
async fn burst(address: SocketAddr, count: usize, simulated: bool) -> Vec<Connection> {
    let mut conns = Vec::new();
    while conns.len() < count {
        let left = count - conns.len();
        conns.extend(at_once(address, if simulated { left.min(100) } else { left }).await);
    }
    conns
}

async fn at_once(address: SocketAddr, count: usize) -> Vec<Connection> {
    let connecting: Vec<_> = (0..count)
        .map(|_| {
            wharf::spawn(async move {
                let mut conn = Client::connect(address).within(Duration::from_secs(60)).await.unwrap();
                greet(&mut conn).await;
                conn
            })
        })
        .collect();
    let mut conns = Vec::new();
    for conn in connecting {
        conns.push(conn.await.unwrap());
    }
    conns
}

/// So many connections, one after the other.
async fn queue(address: SocketAddr, count: usize) -> Vec<Connection> {
    let mut conns = Vec::new();
    for _ in 0..count {
        let mut conn = Client::connect(address).within(Duration::from_secs(60)).await.unwrap();
        greet(&mut conn).await;
        conns.push(conn);
    }
    conns
}

/// Has the server's handler say something, so that it is there.
async fn greet(conn: &mut Connection) {
    conn.send(b"x").await.unwrap();
    conn.recv_exact(&mut [0; 1]).within(Duration::from_secs(60)).await.unwrap();
}

/// Every other one of them.
fn half(conns: Vec<Connection>) -> Vec<Connection> {
    conns.into_iter().step_by(2).collect()
}

scenario! {
    fn connections_that_come_in_one_burst_are_spread_evenly(world) {
        let server = start(world);
        let (address, simulated) = (server.local_addr(), world.is_simulated());
        let count = connections(world);
        world.run(async move {
            let conns = burst(address, count, simulated).await;
            assert_eq!(server.connections(), count);
            assert_balanced(&server);
            drop(conns);
        });
    }
}

scenario! {
    fn new_connections_fill_the_gaps_that_others_leave(world) {
        let server = start(world);
        let (address, simulated) = (server.local_addr(), world.is_simulated());
        let count = connections(world);
        world.run(async move {
            let mut conns = queue(address, count).await;
            assert_balanced(&server);

            // They came in turns, so these were all of one worker.
            conns = half(conns);
            until("they are gone", || server.connections() == count / 2).await;
            assert_eq!(server.connections_by_worker().iter().max(), Some(&(count / 2)));
            conns.extend(burst(address, count / 2, simulated).await);
            assert_balanced(&server);

            // Some go while others come.
            for _ in 0..5 {
                conns.drain(..count / 10);
                conns.extend(burst(address, count / 10, simulated).await);
            }
            until("the last of them are gone", || server.connections() == count).await;
            assert_balanced(&server);
        });
    }
}
