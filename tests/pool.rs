//! Pools of connections: bounds, fairness, what is used again and what is not, outages, and one bound over several workers.

#![allow(clippy::print_stdout, reason = "what was measured is shown with `--nocapture`")]

#[macro_use]
mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_lite::FutureExt as _;
use wharf::pool::{Discard, Lifecycle, Pool, PoolOptions, Pools, SharedPool};
use wharf::{Backoff, Client, Connection, Error, ErrorKind, Result};

use common::behaviours::{Discard as Sink, Echo};
use common::{Behaviour, until};

/// A request and its answer.
async fn ping(conn: &mut Connection) -> Result<()> {
    conn.send(b"ping").await?;
    conn.recv_exact(&mut [0; 4]).await
}

/// Lets other tasks run until `done`; no time passes that a deadline could be measured by.
async fn soon(what: &str, done: impl Fn() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        futures_lite::future::yield_now().await;
    }
    panic!("still not so: {what}");
}

fn pool(address: impl std::fmt::Display, options: PoolOptions) -> Pool<Connection> {
    Pool::new(Client::new(address), options).expect("the options make sense")
}

scenario! {
    async fn a_thousand_tasks_share_sixteen_connections_fairly(world) {
        let turns_each = if world.is_simulated() { 4 } else { 20 };
        let address = world.serve(Echo).local_addr();
        let (least, most, stats) = world.run(async move {
            let pool = pool(address, PoolOptions::default().size(16).within(Duration::from_secs(15)));
            let turns = Rc::new(RefCell::new(vec![0u32; 1000]));
            let total = Rc::new(Cell::new(0));
            let tasks: Vec<_> = (0..1000)
                .map(|task| {
                    let (pool, turns, total) = (pool.clone(), turns.clone(), total.clone());
                    wharf::spawn(async move {
                        // As much as it can get, until all together have had enough.
                        while total.get() < 1000 * turns_each {
                            let mut conn = pool.get().await.expect("a connection in time");
                            ping(&mut conn).await.expect("an answer");
                            turns.borrow_mut()[task] += 1;
                            total.set(total.get() + 1);
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("no task panics");
            }
            let turns = turns.borrow();
            (*turns.iter().min().expect("tasks"), *turns.iter().max().expect("tasks"), pool.stats())
        });
        assert!(most <= 2 * least, "between {least} and {most} turns");
        assert!(stats.created <= 16, "{stats:?}");
        assert_eq!((stats.failed, stats.timed_out, stats.in_use, stats.waiting), (0, 0, 0, 0));
        println!("turns per task: {least} to {most}; {} created, {} reused", stats.created, stats.reused);
    }
}

scenario! {
    async fn a_killed_server_costs_each_request_at_most_one_error_and_nothing_stale_is_used_after(world) {
        let settled = Duration::from_millis(100);
        let (worst, late, after, stats) = world.with_outages(Echo, |address, outage| async move {
            let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(20));
            let pool = pool(address, PoolOptions::default().size(8).backoff(backoff));
            let phase = Rc::new(Cell::new("before"));
            let (worst, late, after) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let tasks: Vec<_> = (0..40)
                .map(|_| {
                    let (pool, phase) = (pool.clone(), phase.clone());
                    let (worst, late, after) = (worst.clone(), late.clone(), after.clone());
                    wharf::spawn(async move {
                        while after.get() < 400 {
                            let begun = phase.get();
                            let mut errors = 0;
                            while pool.with(ping).await.is_err() {
                                errors += 1;
                                // Whoever fails tries again when the server is back.
                                while phase.get() == "dead" {
                                    wharf::sleep(Duration::from_millis(1)).await;
                                }
                            }
                            worst.set(worst.get().max(errors));
                            if begun == "after" {
                                late.set(late.get() + errors);
                                after.set(after.get() + 1);
                            }
                        }
                    })
                })
                .collect();
            until("there is traffic", || pool.stats().reused > 200).await;
            phase.set("dead");
            outage.kill().await;
            wharf::sleep(settled).await;
            outage.restart().await;
            // Nobody begins anew while the failures of the outage are still to be told.
            phase.set("back");
            wharf::sleep(settled).await;
            phase.set("after");
            for task in tasks {
                task.await.expect("no task panics");
            }
            (worst.get(), late.get(), after.get(), pool.stats())
        });
        assert!(worst <= 1, "a request saw {worst} errors");
        assert_eq!(late, 0, "a stale connection was handed out: {stats:?}");
        assert!(after >= 400);
    }
}

scenario! {
    async fn what_is_idle_when_the_server_dies_goes_at_once_and_is_never_handed_out(world) {
        let settled = Duration::from_millis(100);
        let (before, dead, stats) = world.with_outages(Echo, |address, outage| async move {
            let pool = pool(address, PoolOptions::default().size(4));
            let mut held = Vec::new();
            for _ in 0..4 {
                held.push(pool.get().await.expect("a connection"));
            }
            drop(held);
            let before = pool.stats().idle;
            outage.kill().await;
            wharf::sleep(settled).await;
            // Nobody has asked for one; the pool has noticed by itself.
            let dead = pool.stats().idle;
            outage.restart().await;
            pool.with(ping).await.expect("a new connection");
            (before, dead, pool.stats())
        });
        assert_eq!((before, dead), (4, 0));
        assert_eq!(stats.discarded.by(Discard::Closed) + stats.discarded.by(Discard::HungUp), 4);
        assert_eq!((stats.created, stats.reused), (5, 0));
    }
}

scenario! {
    async fn only_what_is_as_good_as_new_is_used_again(world) {
        let address = world.serve(Echo).local_addr();
        let stats = world.run(async move {
            let pool = pool(address, PoolOptions::default().size(2));
            pool.with(ping).await.expect("an answer");
            // An answer that nobody has read,
            let mut conn = pool.get().await.expect("a connection");
            conn.send(b"ping").await.expect("there is room");
            drop(conn);
            // one that was read in part,
            let mut conn = pool.get().await.expect("a connection");
            conn.send(b"ping").await.expect("there is room");
            conn.recv_exact(&mut [0; 1]).await.expect("the beginning of an answer");
            while conn.recv_exact(&mut [0; 4]).within(Duration::from_millis(20)).await.is_ok() {}
            drop(conn);
            // a read that was given up,
            let mut conn = pool.get().await.expect("a connection");
            let late = conn.recv(&mut [0; 1]).within(Duration::from_millis(1)).await;
            assert!(late.expect_err("nothing was asked for").is_timeout());
            drop(conn);
            // one that was closed,
            let mut conn = pool.get().await.expect("a connection");
            conn.close().await;
            drop(conn);
            // one that its user does not want any more, twice,
            pool.get().await.expect("a connection").discard();
            let failed = pool.with(async |_| Err::<(), _>(Error::other("no"))).await;
            assert_eq!(failed.expect_err("its own error").to_string(), "handle: no");
            // and one whose user panics.
            let mine = pool.clone();
            let panicked = wharf::spawn(async move {
                let _conn = mine.get().await.expect("a connection");
                panic!("on purpose");
            });
            panicked.await.expect_err("it panicked");
            drop(pool.get().await.expect("a connection").take());
            pool.with(ping).await.expect("the pool works on");
            pool.stats()
        });
        let by = |reason| stats.discarded.by(reason);
        assert_eq!(by(Discard::Unanswered) + by(Discard::Unread) + by(Discard::Interrupted), 3, "{stats:?}");
        assert!(by(Discard::Interrupted) >= 1);
        assert_eq!((by(Discard::Closed), by(Discard::Asked), by(Discard::Panicked)), (1, 2, 1), "{stats:?}");
        assert_eq!((by(Discard::Taken), stats.discarded.total()), (1, 8));
        assert_eq!((stats.idle, stats.in_use), (1, 0));
    }
}

scenario! {
    async fn those_who_wait_are_served_in_turn_and_who_gives_up_passes_it_on(world) {
        let address = world.serve(Echo).local_addr();
        let patience = world.time(5.0);
        let order = world.run(async move {
            let pool = pool(address, PoolOptions::default().size(1));
            let held = pool.get().await.expect("a connection");
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = (0..6)
                .map(|number| {
                    let (pool, order) = (pool.clone(), order.clone());
                    wharf::spawn(async move {
                        // The third has no patience.
                        let after = if number == 2 { patience } else { patience * 100 };
                        match pool.get().within(after).await {
                            Ok(_) => order.borrow_mut().push(number),
                            Err(error) => assert!(error.is_timeout() && number == 2, "{error}"),
                        }
                    })
                })
                .collect();
            soon("all wait", || pool.stats().waiting == 6).await;
            until("one has given up", || pool.stats().waiting == 5).await;
            // One is dropped at the very moment when it is handed the connection.
            let mut dropped = Box::pin(pool.get());
            assert!(futures_lite::future::poll_once(&mut dropped).await.is_none(), "none is free");
            let last = wharf::spawn({ let pool = pool.clone(); async move { pool.get().await.map(drop) } });
            soon("all wait", || pool.stats().waiting == 7).await;
            drop(held);
            for task in tasks {
                task.await.expect("no task panics");
            }
            until("it is handed over", || pool.stats().waiting == 1).await;
            drop(dropped);
            last.await.expect("no panic").expect("it was passed on");
            order.take()
        });
        assert_eq!(order, [0, 1, 3, 4, 5]);
    }
}

scenario! {
    async fn nobody_waits_beyond_the_deadline_and_the_error_tells_what_was_missing(world) {
        let address = world.serve(Echo).local_addr();
        let wait = world.time(1.0);
        world.run(async move {
            let options = PoolOptions::default().size(1).waiters(1).within(wait).label("cache");
            let pool = pool(address, options);
            let _held = pool.get().await.expect("a connection");
            let waiting = wharf::spawn({ let pool = pool.clone(); async move { pool.get().await.map(drop) } });
            soon("one waits", || pool.stats().waiting == 1).await;
            let refused = pool.get().await.expect_err("one may wait");
            assert_eq!(refused.kind(), ErrorKind::Limit);
            assert_eq!(refused.to_string(), "acquire from cache: 1 wait for a connection, see `waiters`");
            let late = waiting.await.expect("no panic").expect_err("none is free");
            let expected = format!("acquire from cache: timed out after {wait:?}: all 1 are in use, see `size`");
            assert_eq!(late.to_string(), expected);
            let waiting = wharf::spawn({ let pool = pool.clone(); async move { pool.get().await.map(drop) } });
            soon("one waits", || pool.stats().waiting == 1).await;
            pool.close();
            let told = waiting.await.expect("no panic").expect_err("the pool is closed");
            assert_eq!(told.to_string(), "acquire from cache: the pool is closed");
            drop(_held);
            pool.emptied().await;
            let stats = pool.stats();
            assert_eq!((stats.timed_out, stats.refused, stats.discarded.by(Discard::PoolClosed)), (1, 1, 1));
        });
    }
}

scenario! {
    async fn a_dead_server_is_tried_one_connect_at_a_time_and_less_and_less_often(world) {
        let (unit, rest) = (world.time(0.1), world.time(20.0));
        let (errors, stats) = world.with_outages(Echo, |address, outage| async move {
            outage.kill().await;
            let backoff = Backoff::new(unit, unit * 100);
            let pool = pool(address, PoolOptions::default().backoff(backoff).within(rest));
            let tasks: Vec<_> = (0..50)
                .map(|_| {
                    let pool = pool.clone();
                    wharf::spawn(async move { pool.get().await.map(drop) })
                })
                .collect();
            let mut errors = Vec::new();
            for task in tasks {
                errors.push(task.await.expect("no panic").expect_err("nobody is there"));
            }
            outage.restart().await;
            pool.with(ping).await.expect("it is there again");
            (errors, pool.stats())
        });
        let timeouts = errors.iter().filter(|error| error.is_timeout()).count();
        for error in errors.iter().map(ToString::to_string) {
            let told = error.starts_with("connect to") || error.contains("the last try failed: connect to");
            assert!(told, "who has tried is told of it, and who has waited in vain why: {error}");
        }
        // The first connects begin before any has failed: as many as there may be, 16.
        assert!(stats.failed >= 17 && stats.failed < 60, "{stats:?}");
        assert_eq!(errors.len(), 50);
        assert!(timeouts > 0, "most never had their turn");
        assert!(timeouts as u64 + stats.failed >= 50, "each failure is told to one: {stats:?}");
    }
}

scenario! {
    async fn connections_are_made_ahead_and_end_when_they_are_idle_for_too_long_or_too_old(world) {
        let address = world.serve(Echo).local_addr();
        let (idle, age) = (world.time(2.0), world.time(8.0));
        let stats = world.run(async move {
            let pool = pool(address, PoolOptions::default().size(4).idle_min(2).idle(idle).age(age));
            pool.warm().expect("the pool is open");
            until("two are made ahead", || pool.stats().idle == 2).await;
            let held = [pool.get().await, pool.get().await, pool.get().await, pool.get().await];
            drop(held.map(|got| got.expect("a connection")));
            assert_eq!(pool.stats().idle, 4);
            until("those beyond the two go", || pool.stats().idle == 2).await;
            assert_eq!(pool.stats().discarded.by(Discard::Idle), 2);
            until("the others grow old", || pool.stats().discarded.by(Discard::Aged) >= 2).await;
            until("and are replaced", || pool.stats().idle == 2).await;
            pool.close();
            pool.emptied().await;
            pool.stats()
        });
        assert_eq!(stats.idle, 0);
    }
}

/// Counts what becomes of its items, and says of some that they are bad.
struct Counted {
    client: Client,
    closed: Rc<Cell<u32>>,
    bad: Rc<Cell<bool>>,
}

impl Lifecycle for Counted {
    type Item = (u32, Connection);

    async fn make(&self) -> Result<(u32, Connection)> {
        Ok((7, self.client.open().await?))
    }

    async fn check(&self, item: &mut (u32, Connection)) -> Result<()> {
        ping(&mut item.1).await?;
        if self.bad.get() { Err(Error::other("bad")) } else { Ok(()) }
    }

    fn connection<'a>(&self, item: &'a (u32, Connection)) -> Option<&'a Connection> {
        Some(&item.1)
    }

    fn close(&self, _: (u32, Connection)) {
        self.closed.set(self.closed.get() + 1);
    }
}

scenario! {
    async fn what_fails_its_own_check_is_replaced_and_nobody_is_told(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let (closed, bad) = (Rc::<Cell<u32>>::default(), Rc::<Cell<bool>>::default());
            let counted = Counted { client: Client::new(address), closed: closed.clone(), bad: bad.clone() };
            let pool = Pool::new(counted, PoolOptions::default().size(2)).expect("the options make sense");
            assert_eq!(pool.get().await.expect("a new one").0, 7);
            drop(pool.get().await.expect("a good one"));
            assert_eq!((pool.stats().created, pool.stats().reused), (1, 1));
            bad.set(true);
            drop(pool.get().await.expect("a new one"));
            let stats = pool.stats();
            assert_eq!((stats.created, stats.discarded.by(Discard::Check), closed.get()), (2, 1, 1));
            drop(pool);
            assert_eq!(closed.get(), 2);
        });
    }
}

scenario! {
    async fn there_is_a_pool_for_each_endpoint_and_not_for_more_than_may_be(world) {
        let addresses = [0, 1, 2].map(|_| world.serve(Echo).local_addr());
        world.run(async move {
            let options = PoolOptions::default().endpoints(2);
            let pools = Pools::new(|address: &std::net::SocketAddr| Client::new(address), options);
            let pools = pools.expect("the options make sense");
            for _ in 0..2 {
                for address in &addresses[..2] {
                    pools.get(*address).expect("there is room").with(ping).await.expect("an answer");
                }
            }
            let first = pools.get(addresses[0]).expect("it is there");
            assert_eq!((first.stats().created, pools.len()), (1, 2));
            // The second is not in use, and has to go.
            let third = pools.get(addresses[2]).expect("there is room");
            let full = pools.get(addresses[1]).map(drop).expect_err("both are in use");
            assert_eq!(full.to_string(), "acquire: 2 endpoints are in use, see `endpoints`");
            assert_eq!(full.kind(), ErrorKind::Limit);
            drop((first, third));
            pools.get(addresses[1]).expect("there is room").with(ping).await.expect("an answer");
            pools.close();
            assert!(pools.is_empty());
        });
    }
}

#[test]
fn pools_by_endpoint_refuse_what_makes_no_sense_before_any_is_used() {
    let make = |address: &String| Client::new(address);
    let refused =
        Pools::new(make, PoolOptions::default().endpoints(0)).expect_err("no key could have a pool");
    assert_eq!(refused.to_string(), "start: option `endpoints` is 0, so no key could ever have a pool");
    let refused =
        Pools::new(make, PoolOptions::default().size(0)).expect_err("nobody could get a connection");
    assert!(refused.to_string().contains("`size`"), "{refused}");
}

/// Asks another server by a shared pool.
#[derive(Clone)]
struct Front {
    pool: SharedPool<Connection>,
    most: Arc<AtomicUsize>,
}

impl Behaviour for Front {
    type Handler = Echo;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut request = [0; 4];
        while conn.recv_exact(&mut request).await.is_ok() {
            self.most.fetch_max(self.pool.connections(), Ordering::SeqCst);
            self.pool.local().with(ping).await?;
            conn.send(&request).await?;
        }
        Ok(())
    }

    fn handler(self) -> Echo {
        Echo
    }
}

scenario! {
    async fn workers_share_one_bound_and_none_of_them_goes_without(world) {
        let back = world.serve(Echo);
        let patience = world.time(0.1);
        let options = PoolOptions::default().size(2).patience(patience);
        let pool = SharedPool::new(Client::new(back.local_addr()), options).expect("the options make sense");
        let most = Arc::<AtomicUsize>::default();
        let front = world.serve(Front { pool: pool.clone(), most: most.clone() });
        let address = front.local_addr();
        world.run(async move {
            let tasks: Vec<_> = (0..20)
                .map(|_| {
                    wharf::spawn(async move {
                        let mut conn = Client::connect(address).await?;
                        for _ in 0..20 {
                            ping(&mut conn).within(Duration::from_secs(15)).await?;
                        }
                        Ok::<(), Error>(())
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("no panic").expect("each is served");
            }
        });
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)), "{most:?}");
        // What is idle does not keep a server from ending.
        let began = world.now();
        world.stop(&front);
        assert!(world.now() - began < Duration::from_secs(5), "the drain waited for idle connections");
        assert_eq!(pool.connections(), 0);
    }
}

/// `within` for a future that is not an operation.
trait InTime: Future + Sized {
    fn within(self, after: Duration) -> impl Future<Output = Self::Output>;
}

impl<T, F: Future<Output = Result<T>>> InTime for F {
    async fn within(self, after: Duration) -> Result<T> {
        wharf::within(after, self).await?
    }
}

scenario! {
    async fn a_message_that_needs_no_answer_can_be_declared_so(world) {
        let address = world.serve(Sink).local_addr();
        let stats = world.run(async move {
            let pool = pool(address, PoolOptions::default().keep_unanswered(true));
            for _ in 0..5 {
                let mut conn = pool.get().await.expect("a connection");
                conn.send(b"news").await.expect("there is room");
            }
            pool.stats()
        });
        assert_eq!((stats.created, stats.reused, stats.discarded.total()), (1, 4, 0));
    }
}

#[test]
fn a_pool_of_one_worker_is_refused_on_another() {
    let pool = pool("127.0.0.1:9", PoolOptions::default());
    wharf::run(async { pool.warm().expect("here is its home") }).expect("a worker");
    let error =
        wharf::run(async { pool.get().or(async { panic!("it is refused at once") }).await.map(drop) });
    let error = error.expect("a worker").expect_err("it belongs to another");
    assert!(error.to_string().contains("SharedPool"), "{error}");
}

scenario! {
    async fn as_many_as_are_to_be_idle_are_made_anew_when_they_are_taken_or_lost(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let pool = pool(address, PoolOptions::default().size(5).idle_min(2));
            pool.warm().expect("here is its home");
            until("two are ahead", || pool.stats().idle == 2).await;
            let first = pool.get().await.expect("one of them");
            until("another takes its place", || pool.stats().idle == 2).await;
            let second = pool.get().await.expect("one of them");
            until("another takes its place", || pool.stats().idle == 2).await;
            let third = pool.get().await.expect("one of them");
            // There may be five.
            until("all are there", || (pool.stats().idle, pool.stats().in_use) == (2, 3)).await;
            let fourth = pool.get().await.expect("one of them");
            assert_eq!(pool.stats().idle, 1);
            fourth.discard();
            until("another takes its place", || pool.stats().idle == 2).await;
            drop((first, second, third));
            assert_eq!((pool.stats().idle, pool.stats().in_use), (5, 0));
        });
    }
}

scenario! {
    async fn a_shared_pool_in_which_nobody_may_wait_still_has_connections(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let options = PoolOptions::default().size(1).waiters(0);
            let pool = SharedPool::new(Client::new(address), options).expect("the options make sense");
            let held = pool.get().await.expect("there may be one");
            let refused = pool.get().await.map(drop).expect_err("nobody may wait");
            assert_eq!(refused.kind(), ErrorKind::Limit);
            assert_eq!((pool.local().stats().waiting, pool.local().stats().refused), (0, 1));
            drop(held);
            pool.local().with(ping).await.expect("an answer");
            ping(&mut pool.get().await.expect("it is idle")).await.expect("an answer");
        });
    }
}

/// Tells how many of its connections were closed.
#[derive(Clone)]
struct Closings(Client, Arc<AtomicUsize>);

impl Lifecycle for Closings {
    type Item = Connection;

    async fn make(&self) -> Result<Connection> {
        self.0.open().await
    }

    fn connection<'a>(&self, item: &'a Connection) -> Option<&'a Connection> {
        Some(item)
    }

    fn close(&self, _: Connection) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

scenario! {
    async fn what_is_idle_goes_with_the_last_handle_of_a_shared_pool(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let closed = Arc::<AtomicUsize>::default();
            let lifecycle = Closings(Client::new(address), closed.clone());
            let options = PoolOptions::default().size(4).idle_min(2);
            let pool = SharedPool::new(lifecycle, options).expect("the options make sense");
            let other = pool.clone();
            drop(pool.get().await.expect("a connection"));
            until("two are idle", || pool.local().stats().idle == 2).await;
            drop(pool);
            let kept = other.local();
            drop(other);
            drop(kept.get().await.expect("this worker's own is still used"));
            until("two are idle", || kept.stats().idle == 2).await;
            assert_eq!(closed.load(Ordering::SeqCst), 0);
            drop(kept);
            until("they are closed", || closed.load(Ordering::SeqCst) == 2).await;
        });
    }
}

/// Uses a shared pool, and tells when it has its turn.
#[derive(Clone)]
struct InTurn {
    pool: SharedPool<Connection>,
    waits: Arc<AtomicUsize>,
    order: Arc<Mutex<Vec<&'static str>>>,
}

impl Behaviour for InTurn {
    type Handler = Echo;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut request = [0; 4];
        conn.recv_exact(&mut request).await?;
        let mut getting = Box::pin(self.pool.get());
        assert!(futures_lite::future::poll_once(&mut getting).await.is_none(), "none is free");
        self.waits.fetch_add(1, Ordering::SeqCst);
        let mut lent = getting.await?;
        self.order.lock().expect("nobody panics").push("there");
        ping(&mut lent).await?;
        drop(lent);
        conn.send(&request).await
    }

    fn handler(self) -> Echo {
        Echo
    }
}

scenario! {
    async fn workers_are_served_strictly_in_turn_if_nobody_may_be_overtaken(world) {
        let back = world.serve(Echo).local_addr();
        for (patience, expected) in
            [(Duration::ZERO, ["there", "here"]), (Duration::from_secs(3600), ["here", "there"])]
        {
            let options = PoolOptions::default().size(1).patience(patience);
            let pool = SharedPool::new(Client::new(back), options).expect("the options make sense");
            let (waits, order) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<_>>>::default());
            let front = InTurn { pool: pool.clone(), waits: waits.clone(), order: order.clone() };
            let (front, log) = (world.serve(front), order.clone());
            let address = front.local_addr();
            world.run(async move {
                let held = pool.get().await.expect("a connection");
                let mut conn = Client::connect(address).await.expect("a connection");
                conn.send(b"ping").await.expect("there is room");
                until("it waits there", || waits.load(Ordering::SeqCst) == 1).await;
                // Clocks of two threads are the same to a microsecond or so.
                wharf::sleep(Duration::from_millis(2)).await;
                let mut getting = Box::pin(pool.get());
                assert!(futures_lite::future::poll_once(&mut getting).await.is_none(), "none is free");
                drop(held);
                let mut lent = getting.await.expect("its turn");
                order.lock().expect("nobody panics").push("here");
                ping(&mut lent).await.expect("an answer");
                drop(lent);
                conn.recv_exact(&mut [0; 4]).await.expect("it was served too");
            });
            assert_eq!(*log.lock().expect("nobody panics"), expected);
            // With what it keeps idle: the server behind would wait for that.
            world.stop(&front);
        }
    }
}
