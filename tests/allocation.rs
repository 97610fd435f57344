//! What a message costs the allocator: nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wharf::event::{self, Flow, Handler};
use wharf::framing::{Fixed, FrameConnection, FrameHandler, Framed, Frames, LengthPrefixed, Lines};
use wharf::{Backend, Connection, Server, ServerHandle};

use common::{Watchdog, Wire, backends};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // The thread may be past its thread-locals.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

/// Allocations of this thread so far.
fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

#[allow(unsafe_code, reason = "an allocator has to be")]
// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Messages before it is looked at, and then.
fn messages(wire: Wire) -> (u64, u64) {
    match wire {
        Wire::Plain => (2_000, 10_000),
        // Sealing takes its time in a build for debugging.
        #[cfg(feature = "tls")]
        Wire::Tls => (1_000, 3_000),
    }
}

/// A queue or a pool may reach a new maximum after the warm-up, when the scheduler lets more messages wait than ever before. That
/// costs an allocation once, and not one for each of them.
const NEW_MAXIMA: u64 = 8;

/// What goes back and forth: messages of a size, on so many connections at once.
#[derive(Copy, Clone, Debug)]
struct Traffic {
    size: usize,
    connections: usize,
}

/// One connection sends inline. Many that are ready at once send together, through the ring on io_uring; and messages
/// larger than its buffers are received in bulk there.
const TRAFFICS: [Traffic; 5] = [
    Traffic { size: 100, connections: 1 },
    Traffic { size: 100, connections: 64 },
    Traffic { size: 16 * 1024, connections: 1 },
    Traffic { size: 16 * 1024, connections: 64 },
    Traffic { size: 64 * 1024, connections: 4 },
];

/// Counts messages on the server's worker, and what its thread allocated between two of them.
#[derive(Clone)]
struct Meter {
    size: usize,
    warm_up: u64,
    /// How many there are behind the warm-up.
    count: u64,
    /// Of all connections together.
    messages: Arc<AtomicU64>,
    before: Arc<AtomicU64>,
    result: Arc<AtomicU64>,
}

impl Meter {
    fn new(size: usize, wire: Wire) -> Meter {
        let (warm_up, count) = messages(wire);
        let result = Arc::new(AtomicU64::new(u64::MAX));
        Meter { size, warm_up, count, messages: Arc::default(), before: Arc::default(), result }
    }

    fn message(&self) {
        let messages = self.messages.fetch_add(1, Ordering::SeqCst) + 1;
        if messages == self.warm_up {
            self.before.store(allocations(), Ordering::SeqCst);
        }
        if messages == self.warm_up + self.count {
            self.result.store(allocations() - self.before.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }
}

impl Handler for Echoing {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        conn.send(bytes).expect("there is room for one message");
        self.part += bytes.len();
        while self.part >= self.meter.size {
            self.part -= self.meter.size;
            self.meter.message();
        }
        Flow::Continue
    }
}

/// Sends back what comes, however it is cut.
struct Echoing {
    meter: Meter,
    /// Bytes of the message that is not complete.
    part: usize,
}

/// Has a server's worker see as many messages as `meter` wants; returns what it allocated behind the warm-up.
fn allocations_of(
    server: &ServerHandle,
    backend: Backend,
    wire: Wire,
    traffic: Traffic,
    meter: &Meter,
) -> u64 {
    let (address, messages) = (server.local_addr(), meter.warm_up + meter.count);
    wharf::run_on(backend, async move {
        let mut conns = Vec::new();
        for _ in 0..traffic.connections {
            conns.push(wire.client(address).open().await.unwrap());
        }
        let mut buf = vec![7; traffic.size];
        for _ in 0..messages.div_ceil(traffic.connections as u64) {
            // All of them are sent before one is answered, so that they are there together.
            for conn in &mut conns {
                conn.send(&buf).await.unwrap();
            }
            for conn in &mut conns {
                conn.recv_exact(&mut buf).await.unwrap();
            }
        }
    })
    .unwrap();
    server.drain(Duration::from_secs(5)).wait().unwrap();
    meter.result.load(Ordering::SeqCst)
}

/// Tells how many allocations the messages of all [`TRAFFICS`] cost a server on each engine.
fn assert_free(name: &str, wire: Wire, start: impl Fn(Server, Meter) -> wharf::Result<ServerHandle>) {
    assert_free_of(name, wire, &TRAFFICS, start);
}

/// The same for messages that lie whole in what is received at once: what is left over is put together in event style.
fn assert_whole_frames_are_free(name: &str, start: impl Fn(Server, Meter) -> wharf::Result<ServerHandle>) {
    assert_free_of(name, Wire::Plain, &TRAFFICS[..2], start);
}

fn assert_free_of(
    name: &str,
    wire: Wire,
    traffics: &[Traffic],
    start: impl Fn(Server, Meter) -> wharf::Result<ServerHandle>,
) {
    let _watchdog = Watchdog::patient(name, Duration::from_secs(120));
    for backend in backends(name) {
        for &traffic in traffics {
            let meter = Meter::new(traffic.size, wire);
            let server = wire.server(Server::bind("127.0.0.1:0").workers(1).backend(backend));
            let server = start(server, meter.clone()).unwrap();
            let allocated = allocations_of(&server, backend, wire, traffic, &meter);
            let what =
                format!("{allocated} for {} messages on {backend}, {wire:?}, {traffic:?}", meter.count);
            assert!(allocated <= NEW_MAXIMA, "{what}");
        }
    }
}

fn in_event_style(server: Server, meter: Meter) -> wharf::Result<ServerHandle> {
    server.start_events(move || Echoing { meter: meter.clone(), part: 0 })
}

fn in_async_style(server: Server, meter: Meter) -> wharf::Result<ServerHandle> {
    server.start(move |mut conn: Connection| {
        let meter = meter.clone();
        async move {
            let mut buf = vec![0; meter.size];
            while conn.recv_exact(&mut buf).within(Duration::from_secs(5)).await.is_ok() {
                meter.message();
                conn.send(&buf).await?;
            }
            Ok(())
        }
    })
}

fn in_chunks(server: Server, meter: Meter) -> wharf::Result<ServerHandle> {
    server.start(move |mut conn: Connection| {
        let meter = meter.clone();
        async move {
            let mut part = 0;
            while let Some(chunk) = conn.recv_chunk().await? {
                part += chunk.len();
                if part >= meter.size {
                    part -= meter.size;
                    meter.message();
                }
                conn.send(&chunk).await?;
            }
            Ok(())
        }
    })
}

/// Every message is a frame, which is sent back as one.
struct EchoingFrames(Meter);

impl FrameHandler<Fixed> for EchoingFrames {
    fn frame(&mut self, conn: &mut FrameConnection<'_, '_, Fixed>, frame: &[u8]) -> Flow {
        conn.send_frame(frame).expect("there is room for one message");
        self.0.message();
        Flow::Continue
    }
}

fn in_event_style_by_frames(server: Server, meter: Meter) -> wharf::Result<ServerHandle> {
    server.start_events(move || Frames::new(Fixed::of(meter.size), EchoingFrames(meter.clone())))
}

fn in_async_style_by_frames(server: Server, meter: Meter) -> wharf::Result<ServerHandle> {
    server.start(move |conn: Connection| {
        let meter = meter.clone();
        async move {
            let mut framed = Framed::new(conn, Fixed::of(meter.size));
            while let Some(frame) = framed.recv().await? {
                meter.message();
                framed.send(&frame).await?;
            }
            Ok(())
        }
    })
}

/// What the messages of a framing cost a server in both styles, of which its clients send many at once: most of them lie whole in
/// what is received, and some do not.
fn assert_frames_are_free<F>(name: &str, framing: &F)
where
    F: wharf::framing::Framing + Clone + Send + Sync + 'static,
{
    let _watchdog = Watchdog::patient(name, Duration::from_secs(120));
    for backend in backends(name) {
        for size in [100, 3000] {
            let meter = Meter::new(size, Wire::Plain);
            let (seen, decode) = (meter.clone(), framing.clone());
            let server =
                Server::bind("127.0.0.1:0").workers(1).backend(backend).start(move |conn: Connection| {
                    let (meter, framing) = (seen.clone(), decode.clone());
                    async move {
                        let mut framed = Framed::new(conn, framing);
                        while let Some(frame) = framed.recv().await? {
                            meter.message();
                            framed.send(&frame).await?;
                        }
                        Ok(())
                    }
                });
            let server = server.unwrap();
            let (address, framing) = (server.local_addr(), framing.clone());
            let rounds = (meter.warm_up + meter.count).div_ceil(50) + 1;
            wharf::run_on(backend, async move {
                let conn = wharf::Client::connect(address).await.unwrap();
                let mut framed = Framed::new(conn, framing);
                let frame = vec![b'x'; size];
                for _ in 0..rounds {
                    for _ in 0..50 {
                        framed.send(&frame).await.unwrap();
                    }
                    for _ in 0..50 {
                        assert_eq!(framed.recv().await.unwrap().unwrap().len(), size);
                    }
                }
            })
            .unwrap();
            server.drain(Duration::from_secs(5)).wait().unwrap();
            let allocated = meter.result.load(Ordering::SeqCst);
            assert!(allocated <= NEW_MAXIMA, "{allocated} for {} frames of {size} on {backend}", meter.count);
        }
    }
}

#[test]
fn a_frame_with_its_length_allocates_nothing() {
    assert_frames_are_free("a_frame_with_its_length_allocates_nothing", &LengthPrefixed::u32());
}

#[test]
fn a_line_allocates_nothing() {
    assert_frames_are_free("a_line_allocates_nothing", &Lines::new());
}

#[test]
fn a_frame_in_event_style_allocates_nothing() {
    assert_whole_frames_are_free("a_frame_in_event_style_allocates_nothing", in_event_style_by_frames);
}

#[test]
fn a_frame_in_async_style_allocates_nothing() {
    assert_free("a_frame_in_async_style_allocates_nothing", Wire::Plain, in_async_style_by_frames);
}

#[test]
fn a_message_in_event_style_allocates_nothing() {
    assert_free("a_message_in_event_style_allocates_nothing", Wire::Plain, in_event_style);
}

#[test]
fn a_message_in_async_style_allocates_nothing() {
    assert_free("a_message_in_async_style_allocates_nothing", Wire::Plain, in_async_style);
}

#[test]
fn a_message_received_in_chunks_allocates_nothing() {
    assert_free("a_message_received_in_chunks_allocates_nothing", Wire::Plain, in_chunks);
}

/// What TLS allocates by itself, in C, is not seen here.
#[test]
#[cfg(feature = "tls")]
fn a_record_in_event_style_allocates_nothing() {
    assert_free("a_record_in_event_style_allocates_nothing", Wire::Tls, in_event_style);
}

#[test]
#[cfg(feature = "tls")]
fn a_record_in_async_style_allocates_nothing() {
    assert_free("a_record_in_async_style_allocates_nothing", Wire::Tls, in_async_style);
}

#[test]
#[cfg(feature = "tls")]
fn a_record_received_in_chunks_allocates_nothing() {
    assert_free("a_record_received_in_chunks_allocates_nothing", Wire::Tls, in_chunks);
}
