//! Sessions that outlive their connections: coming back without a stampede, what is sent meanwhile, states, giving up.

#![allow(clippy::print_stdout, reason = "what was measured is shown with `--nocapture`")]

#[macro_use]
mod common;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use wharf::event::{self, Flow, Handler};
use wharf::reconnect::{Received, Reconnect, Retry, Session, SessionState, Wait};
use wharf::{Backoff, Client, Connection, Error, ErrorKind, Limits, Result, WhenFull};

use common::behaviours::Echo;
use common::{Behaviour, Wire, until};

/// A session that tries again soon.
fn quick(address: SocketAddr, cap: Duration) -> Reconnect {
    let retry = Retry::default().backoff(Backoff::new(cap / 20, cap)).budget(1000, Duration::from_secs(1));
    Reconnect::new(Client::new(address)).retry(retry)
}

/// Keeps the lines that it receives, whole ones only.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<u64>>>,
}

impl Log {
    fn take_lines(&self, buffer: &mut Vec<u8>) {
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let text = std::str::from_utf8(&line).expect("it was sent as text");
            self.lines.lock().expect("nobody panics").push(text.trim().parse().expect("a number"));
        }
    }

    fn len(&self) -> usize {
        self.lines.lock().expect("nobody panics").len()
    }

    fn lines(&self) -> Vec<u64> {
        self.lines.lock().expect("nobody panics").clone()
    }
}

struct Logging {
    log: Log,
    buffer: Vec<u8>,
}

impl Behaviour for Log {
    type Handler = Logging;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut buffer = Vec::new();
        while let Some(chunk) = conn.recv_chunk().await? {
            buffer.extend_from_slice(&chunk);
            self.take_lines(&mut buffer);
        }
        Ok(())
    }

    fn handler(self) -> Logging {
        Logging { log: self, buffer: Vec::new() }
    }
}

impl Handler for Logging {
    fn received(&mut self, _: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        self.buffer.extend_from_slice(bytes);
        self.log.take_lines(&mut self.buffer);
        Flow::Continue
    }
}

/// Tells the time in milliseconds, simulated or real.
#[derive(Clone)]
struct Clock {
    began: Instant,
    ticks: Option<Rc<Cell<u64>>>,
}

impl Clock {
    fn start(is_simulated: bool) -> Clock {
        let ticks = is_simulated.then(|| {
            let ticks = Rc::<Cell<u64>>::default();
            let count = Rc::downgrade(&ticks);
            drop(wharf::spawn(async move {
                while let Some(ticks) = count.upgrade() {
                    ticks.set(ticks.get() + 1);
                    drop(ticks);
                    wharf::sleep(Duration::from_millis(1)).await;
                }
            }));
            ticks
        });
        Clock { began: Instant::now(), ticks }
    }

    fn now(&self) -> u64 {
        self.ticks.as_ref().map_or_else(|| self.began.elapsed().as_millis() as u64, |ticks| ticks.get())
    }
}

scenario! {
    /// The bar of a reconnect storm.
    fn after_a_restart_a_hundred_sessions_are_back_within_two_caps_and_not_at_once(world) {
        const SESSIONS: usize = 100;
        let is_simulated = world.is_simulated();
        let cap = Duration::from_millis(if is_simulated { 5_000 } else { 300 });
        let (arrivals, last) = world.with_outages(Echo, move |address, outage| async move {
            let clock = Clock::start(is_simulated);
            let arrivals = Rc::new(RefCell::new(Vec::new()));
            let waits = Rc::new(RefCell::new(vec![0; SESSIONS]));
            let sessions: Vec<Session> = (0..SESSIONS)
                .map(|number| {
                    let (arrivals, waits, clock) = (arrivals.clone(), waits.clone(), clock.clone());
                    let observe = move |state: &SessionState| match state {
                        SessionState::Connected => arrivals.borrow_mut().push(clock.now()),
                        SessionState::Waiting { delay, .. } => {
                            assert!(*delay <= cap, "{delay:?}");
                            waits.borrow_mut()[number] = clock.now() + delay.as_millis() as u64;
                        }
                        _ => {}
                    };
                    quick(address, cap).observe(observe).start().expect("the options make sense")
                })
                .collect();
            until("all are connected", || arrivals.borrow().len() == SESSIONS).await;
            outage.kill().await;
            // Long enough for all of them to be as slow as they get.
            wharf::sleep(cap * 3).await;
            arrivals.borrow_mut().clear();
            let restarted = clock.now();
            outage.restart().await;
            until("all are back", || arrivals.borrow().len() == SESSIONS).await;
            drop(sessions);
            // A machine that stands still for a while lets all come at once who were due meanwhile. What the sessions are answerable for
            // is when they were due.
            let mut back = if is_simulated { arrivals.take() } else { waits.take() };
            back.sort_unstable();
            let last = arrivals.borrow().iter().max().copied().unwrap_or(back[SESSIONS - 1]);
            (back, last - restarted)
        });
        let cap = cap.as_millis() as u64;
        // A thirtieth of the cap: 10 ms on a real network.
        let window = cap / 30;
        let in_window = |from: u64| arrivals.iter().filter(|at| (from..from + window).contains(at)).count();
        let most = arrivals.iter().map(|from| in_window(*from)).max().expect("all are back");
        println!("cap {cap} ms: all {SESSIONS} are back after {last} ms, at most {most} in any {window} ms");
        let bound = if is_simulated { 2 * cap } else { 2 * cap + 5_000 };
        assert!(last <= bound, "the last was back after {last} ms");
        // Evenly it would be 3 to 7.
        assert!(most <= 25, "{most} of {SESSIONS} came within {window} ms: {arrivals:?}");
    }
}

scenario! {
    fn what_is_sent_before_the_connection_stands_arrives_in_order(world) {
        let log = Log::default();
        let cap = world.time(1.0);
        let seen = log.clone();
        world.with_outages(log.clone(), move |address, outage| async move {
            outage.kill().await;
            let session = quick(address, cap).start().expect("the options make sense");
            for number in 0..500 {
                session.send(format!("{number}\n")).await.expect("there is room");
            }
            until("it has failed", || session.stats().failed > 0).await;
            assert!(session.stats().queued > 0);
            outage.restart().await;
            session.close().await.expect("everything is sent");
            until("everything has arrived", || seen.len() == 500).await;
        });
        assert!(log.lines().into_iter().eq(0..500));
    }
}

scenario! {
    fn nothing_is_sent_twice_and_what_is_lost_is_told(world) {
        let log = Log::default();
        let (cap, pause) = (world.time(0.5), world.time(0.2));
        let stats = world.with_outages(log.clone(), move |address, outage| async move {
            let session = quick(address, cap).queue_max(64 * 1024).start().expect("the options make sense");
            let sender = session.sender();
            let sending = wharf::spawn(async move {
                for number in 0..20_000u64 {
                    sender.send(format!("{number:012}\n")).await.expect("there is room in the end");
                    if number % 500 == 0 {
                        wharf::sleep(pause / 20).await;
                    }
                }
            });
            for _ in 0..3 {
                wharf::sleep(pause).await;
                outage.kill().await;
                wharf::sleep(pause).await;
                outage.restart().await;
            }
            sending.await.expect("no panic");
            let last = session.sender();
            session.close().await.expect("everything is sent");
            last.stats()
        });
        let lines = log.lines();
        assert!(lines.windows(2).all(|pair| pair[0] < pair[1]), "in order, and none twice");
        assert_eq!(stats.sent + stats.torn, 20_000, "{stats:?}");
        let lost = 20_000 - lines.len() as u64;
        // On a connection that breaks also what was acknowledged may never be read.
        if lost > 0 {
            assert!(stats.connected > 1, "{stats:?}");
        }
        assert_eq!((stats.queued, stats.unsent), (0, 0));
    }
}

scenario! {
    fn each_change_of_state_is_told_once_and_in_order(world) {
        let cap = world.time(0.5);
        let names = world.with_outages(Echo, move |address, outage| async move {
            let observed = Rc::new(RefCell::new(Vec::new()));
            let log = observed.clone();
            let session = quick(address, cap).observe(move |state| log.borrow_mut().push(name(state)));
            let mut session = session.start().expect("the options make sense");
            let mut changes = session.changes();
            assert!(matches!(session.recv().await.expect("it goes on"), Received::Connected));
            outage.kill().await;
            until("it has tried", || session.stats().failed > 1).await;
            outage.restart().await;
            assert!(matches!(session.recv().await.expect("it goes on"), Received::Connected));
            session.send("hello").await.expect("there is room");
            assert!(matches!(session.recv().await.expect("it goes on"), Received::Bytes(_)));
            session.close().await.expect("everything is sent");
            let mut streamed = Vec::new();
            while let Some(state) = changes.next().await {
                streamed.push(name(&state));
            }
            assert_eq!(changes.missed(), 0);
            let observed = observed.take();
            assert!(observed.ends_with(&streamed) || observed == streamed, "{observed:?}, {streamed:?}");
            observed
        });
        // It need not wait, if the pause that was drawn is over by then.
        assert_eq!(&names[..3], ["connecting", "connected", "disconnected"]);
        assert_eq!(&names[names.len() - 3..], ["connecting", "connected", "closed"]);
        let follows = |pair: &[&'static str]| match pair[0] {
            "connecting" => pair[1] == "connecting" || pair[1] == "connected" || pair[1] == "disconnected",
            "connected" => pair[1] == "disconnected" || pair[1] == "closed",
            "disconnected" => pair[1] == "waiting" || pair[1] == "connecting",
            "waiting" => pair[1] == "connecting" || pair[1] == "waiting",
            _ => false,
        };
        assert!(names.windows(2).all(follows), "{names:?}");
    }
}

fn name(state: &SessionState) -> &'static str {
    match state {
        SessionState::Connecting { .. } => "connecting",
        SessionState::Connected => "connected",
        SessionState::Disconnected { .. } => "disconnected",
        SessionState::Waiting { .. } => "waiting",
        SessionState::Failed(_) => "failed",
        SessionState::Closed => "closed",
        _ => "unknown",
    }
}

scenario! {
    async fn it_gives_up_after_so_many_attempts_and_tells_the_last_error(world) {
        let cap = world.time(0.5);
        let (ended, stats) = world.with_outages(Echo, move |address, outage| async move {
            outage.kill().await;
            let retry = Retry::default().backoff(Backoff::new(cap / 10, cap)).attempts(3);
            let session = Reconnect::new(Client::new(address)).retry(retry).label("upstream");
            let mut session = session.start().expect("the options make sense");
            session.send("never").await.expect("there is room");
            let ended = session.recv().await.map(drop).expect_err("nobody is there");
            let refused = session.send("more").await.expect_err("it has ended");
            assert_eq!((refused.kind(), refused.operation()), (ErrorKind::Peer, "send"));
            assert!(matches!(session.state(), SessionState::Failed(_)));
            outage.restart().await;
            (ended.to_string(), session.stats())
        });
        assert!(ended.starts_with("receive from upstream: the session has ended: connect to"), "{ended}");
        assert_eq!((stats.failed, stats.connected, stats.unsent, stats.queued), (3, 0, 1, 0));
    }
}

scenario! {
    async fn what_trying_again_cannot_mend_ends_it_at_once(world) {
        let failed = world.run(async {
            let mut session = Reconnect::new(Client::new("no port")).start().expect("the options make sense");
            let error = session.recv().await.map(drop).expect_err("the address is bad");
            assert_eq!(error.kind(), ErrorKind::Caller);
            session.stats().failed
        });
        assert_eq!(failed, 1);
        // And so does a greeting that says no.
        let address = world.serve(Echo).local_addr();
        let connected = world.run(async move {
            let session = Reconnect::new(Client::new(address)).greet(async |conn| {
                conn.send(b"LOGIN").await?;
                conn.recv_exact(&mut [0; 5]).await?;
                Err(Error::other("wrong password"))
            });
            let mut session = session.start().expect("the options make sense");
            let error = session.recv().await.map(drop).expect_err("it was refused");
            assert!(error.to_string().ends_with("wrong password"), "{error}");
            session.stats().connected
        });
        assert_eq!(connected, 0);
    }
}

scenario! {
    async fn when_the_retry_budget_is_used_up_it_waits_and_says_so(world) {
        let unit = world.time(0.1);
        let (attempts, waits) = world.with_outages(Echo, move |address, outage| async move {
            outage.kill().await;
            let waits = Rc::new(RefCell::new(Vec::new()));
            let told = waits.clone();
            let retry = Retry::default().backoff(Backoff::new(unit / 50, unit / 50)).budget(3, unit * 300);
            let session = Reconnect::new(Client::new(address)).retry(retry).observe(move |state| {
                if let SessionState::Waiting { why: Wait::Budget, delay, .. } = state {
                    told.borrow_mut().push(*delay);
                }
            });
            let session = session.start().expect("the options make sense");
            until("it waits for the budget", || !waits.borrow().is_empty()).await;
            let attempts = session.stats().failed;
            drop(session);
            outage.restart().await;
            (attempts, waits.take())
        });
        assert_eq!(attempts, 3);
        assert!(waits[0] > unit * 50 && waits[0] <= unit * 100, "{waits:?}");
    }
}

scenario! {
    async fn each_connection_begins_with_the_greeting_and_other_threads_can_send(world) {
        let log = Log::default();
        let (cap, is_simulated) = (world.time(0.5), world.is_simulated());
        let seen = log.clone();
        world.with_outages(log.clone(), move |address, outage| async move {
            let session = quick(address, cap).greet(async |conn| conn.send(b"1000\n").await);
            let session = session.start().expect("the options make sense");
            let sender = session.sender();
            let send = move || (0..10).for_each(|_| sender.try_send("1\n").expect("there is room"));
            if is_simulated {
                send();
            } else {
                thread::spawn(send).join().expect("no panic");
            }
            until("all has arrived", || seen.len() == 11).await;
            outage.kill().await;
            // What it hands to a connection that is dead already is lost.
            until("it has noticed", || !matches!(session.state(), SessionState::Connected)).await;
            session.send("2\n").await.expect("there is room");
            outage.restart().await;
            until("the rest has arrived", || seen.len() >= 13).await;
            session.close().await.expect("everything is sent");
        });
        let lines = log.lines();
        assert_eq!((lines[0], lines[11], lines[12]), (1000, 1000, 2));
    }
}

scenario! {
    async fn what_is_queued_is_bounded_and_who_finds_no_room_waits_or_is_refused(world) {
        let cap = world.time(0.5);
        let log = Log::default();
        let seen = log.clone();
        world.with_outages(log, move |address, outage| async move {
            outage.kill().await;
            let refusing = quick(address, cap).queue_max(10).when_full(WhenFull::Refuse);
            let refusing = refusing.start().expect("the options make sense");
            refusing.send("12345678\n").await.expect("there is room");
            let full = refusing.send("12\n").await.expect_err("there is none");
            assert_eq!(full.to_string(), "send to session: 9 bytes are queued, see `queue_max`");
            let large = refusing.send("12345678901\n").await.expect_err("it never has room");
            assert_eq!(large.kind(), ErrorKind::Limit);
            drop(refusing);

            let waiting = quick(address, cap).queue_max(10).start().expect("the options make sense");
            waiting.send("1\n").await.expect("there is room");
            let sender = waiting.sender();
            let first = wharf::spawn(async move { sender.send("123456789\n").await });
            let sender = waiting.sender();
            let second = wharf::spawn(async move { sender.send("2\n").await });
            until("it has tried", || waiting.stats().failed > 0).await;
            // The second is shorter, and does not overtake.
            assert_eq!(waiting.stats().queued, 2);
            outage.restart().await;
            first.await.expect("no panic").expect("there is room at last");
            second.await.expect("no panic").expect("there is room at last");
            waiting.close().await.expect("everything is sent");
            until("all has arrived", || seen.len() == 3).await;
            assert_eq!(seen.lines(), [1, 123_456_789, 2]);
        });
    }
}

#[test]
fn bad_options_are_refused_by_name() {
    let reconnect = || Reconnect::new(Client::new("127.0.0.1:9"));
    let refused = [
        (reconnect().queue_max(0), "queue_max"),
        (reconnect().when_full(WhenFull::Disconnect), "when_full"),
        (reconnect().retry(Retry::default().attempts(0)), "attempts"),
    ];
    for (reconnect, name) in refused {
        let outcome = wharf::run(async { reconnect.start().map(drop) }).expect("a worker");
        let message = outcome.expect_err(name).to_string();
        assert!(message.contains(&format!("`{name}`")), "{message}");
    }
}

scenario! {
    async fn a_panic_in_what_it_calls_ends_it_for_all_who_wait_for_it(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let panicking: [fn(Reconnect) -> Reconnect; 3] = [
                |session| {
                    session.observe(|state| {
                        assert!(!matches!(state, SessionState::Connected), "on purpose");
                    })
                },
                |session| session.greet(async |_| panic!("on purpose")),
                |session| session.greet(async |_| Err(Error::other("no"))).final_if(|_| panic!("on purpose")),
            ];
            for panicking in panicking {
                let session = panicking(Reconnect::new(Client::new(address)));
                let mut session = session.start().expect("the options make sense");
                let mut changes = session.changes();
                let ended = loop {
                    if let Err(ended) = session.recv().await {
                        break ended.to_string();
                    }
                };
                assert!(ended.ends_with(": something that it called has panicked"), "{ended}");
                let mut last = None;
                while let Some(state) = changes.next().await {
                    last = Some(state);
                }
                assert!(matches!(last, Some(SessionState::Failed(_))), "{last:?}");
                session.send("more").await.expect_err("it has ended");
                session.close().await.expect_err("it has ended");
            }
        });
    }
}

scenario! {
    async fn who_asks_for_changes_when_it_has_ended_is_told_that_there_are_none(world) {
        world.run(async {
            let mut session = Reconnect::new(Client::new("no port")).start().expect("the options make sense");
            session.recv().await.map(drop).expect_err("the address is bad");
            assert!(session.changes().next().await.is_none());
        });
    }
}

#[test]
fn who_waits_on_another_thread_is_told_that_the_worker_has_ended() {
    let told = wharf::run(async {
        let session = Reconnect::new(Client::new("127.0.0.1:1")).start().expect("the options make sense");
        let mut changes = session.changes();
        let told = thread::spawn(move || {
            futures_lite::future::block_on(async {
                let mut last = None;
                while let Some(state) = changes.next().await {
                    last = Some(state);
                }
                last
            })
        });
        // It outlives its worker's tasks.
        (session, told)
    });
    let (session, told) = told.expect("a worker");
    let last = told.join().expect("no panic");
    assert!(last.as_ref().is_some_and(SessionState::is_final), "{last:?}");
    assert!(session.state().is_final());
}

scenario! {
    fn a_message_that_a_connection_has_no_room_for_waits_whatever_its_client_says(world) {
        let log = Log::default();
        let (address, seen) = (world.serve(log.clone()).local_addr(), log.clone());
        world.run(async move {
            let limits = Limits::default().send_marks(256, 512).send_max(1024).when_full(WhenFull::Refuse);
            let session = Reconnect::new(Client::new(address).limits(limits));
            let session = session.start().expect("the options make sense");
            let lines: String = (0..10_000).map(|number| format!("{number}\n")).collect();
            session.send(lines).await.expect("there is room");
            session.close().await.expect("everything is sent");
            until("all has arrived", || seen.len() == 10_000).await;
        });
        assert!(log.lines().into_iter().eq(0..10_000));
    }
}

/// The ways on which what breaks is told differently.
const WIRES: &[Wire] = &[
    Wire::Plain,
    #[cfg(feature = "tls")]
    Wire::Tls,
];

scenario! {
    async fn a_message_that_is_torn_is_told_and_never_sent_again(world) {
        for wire in WIRES {
            let (log, count) = (Log::default(), Arc::<AtomicUsize>::default());
            let seen = log.clone();
            let server = world.serve_async(|server| wire.server(server), move |mut conn| {
                let (log, count) = (log.clone(), count.clone());
                async move {
                    if count.fetch_add(1, Ordering::SeqCst) > 0 {
                        return log.run(conn).await;
                    }
                    // It takes the beginning of the first message, and is gone.
                    conn.recv(&mut [0; 100]).await?;
                    conn.reset().await;
                    Ok(())
                }
            });
            let (client, cap) = (wire.client(server.local_addr()), world.time(0.5));
            let (stats, unacked) = world.run(async move {
                let unacked = Rc::<Cell<Option<u64>>>::default();
                let told = unacked.clone();
                let session = Reconnect::new(client)
                    .retry(Retry::default().backoff(Backoff::new(cap / 20, cap)))
                    .queue_max(64 * 1024 * 1024)
                    .observe(move |state| {
                        if let SessionState::Disconnected { unacked, .. } = state {
                            told.set(*unacked);
                        }
                    })
                    .start()
                    .expect("the options make sense");
                // More than all buffers on the way take.
                let large = "1".repeat(16 * 1024 * 1024) + "\n";
                session.send(large).await.expect("there is room");
                session.send("2\n").await.expect("there is room");
                session.send("3\n").await.expect("there is room");
                let sender = session.sender();
                session.close().await.expect("everything is sent");
                until("the rest has arrived", || seen.len() == 2).await;
                assert_eq!(seen.lines(), [2, 3]);
                (sender.stats(), unacked.get())
            });
            assert_eq!((stats.connected, stats.torn, stats.sent, stats.unsent), (2, 1, 2, 0), "{wire:?} {stats:?}");
            assert_eq!(Some(stats.unacked), unacked.or(Some(0)), "{stats:?}");
        }
    }
}

#[cfg(feature = "tls")]
scenario! {
    async fn a_certificate_that_is_refused_ends_it_at_once(world) {
        use wharf::tls::{ClientTls, Connector};

        let address = world.serve_with(Echo, |server| Wire::Tls.server(server)).local_addr();
        let strangers = common::tls::Authority::new("somebody else").trust();
        let connector = Connector::new(ClientTls::new().trust(strangers).server_name(common::tls::NAME));
        let client = Client::new(address).tls(&connector.expect("it makes sense"));
        let stats = world.run(async move {
            let mut session = Reconnect::new(client).start().expect("the options make sense");
            let ended = session.recv().await.map(drop).expect_err("nobody believes it");
            assert!(matches!(ended.tls_fault(), Some(wharf::TlsFault::Certificate(_))), "{ended}");
            assert!(matches!(session.state(), SessionState::Failed(_)));
            session.stats()
        });
        assert_eq!((stats.failed, stats.connected), (1, 0));
    }
}

scenario! {
    async fn each_step_of_a_connect_is_told_with_its_attempt(world) {
        for wire in WIRES {
            let address = world.serve_with(Echo, |server| wire.server(server)).local_addr();
            let client = wire.client(address);
            let told = world.run(async move {
                let told = Rc::<RefCell<Vec<String>>>::default();
                let log = told.clone();
                let mut session = Reconnect::new(client)
                    .greet(async |conn| conn.send(b"hello").await)
                    .observe(move |state| log.borrow_mut().push(state.to_string()))
                    .start()
                    .expect("the options make sense");
                session.recv().await.expect("it is there");
                session.close().await.expect("nothing is queued");
                told.take()
            });
            let mut expected = vec![
                format!("connecting to {address}, attempt 1"),
                format!("in the TLS handshake with {address}, attempt 1"),
                format!("greeting {address}, attempt 1"),
                String::from("connected"),
                String::from("closed"),
            ];
            if *wire == Wire::Plain {
                expected.remove(1);
            }
            assert_eq!(told, expected);
        }
    }
}
