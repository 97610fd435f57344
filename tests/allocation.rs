//! What a message costs the allocator: nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wharf::event::{self, Flow, Handler};
use wharf::{Client, Connection, Server, ServerHandle};

use common::Watchdog;

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

const WARM_UP: u64 = 1_000;
const MESSAGES: u64 = 10_000;
const SIZE: usize = 100;

/// Counts messages on the server's worker, and what its thread allocated between two of them.
#[derive(Clone, Default)]
struct Meter {
    messages: u64,
    before: u64,
    result: Arc<AtomicU64>,
}

impl Meter {
    fn message(&mut self) {
        self.messages += 1;
        if self.messages == WARM_UP {
            self.before = allocations();
        }
        if self.messages == WARM_UP + MESSAGES {
            self.result.store(allocations() - self.before, Ordering::SeqCst);
        }
    }
}

impl Handler for Meter {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        if bytes.len() < SIZE {
            return Flow::Consumed(0);
        }
        self.message();
        conn.send(bytes).expect("there is room for one message");
        Flow::Continue
    }
}

fn allocations_of(server: &ServerHandle, result: &AtomicU64) -> u64 {
    let address = server.local_addr();
    wharf::run(async move {
        let mut conn = Client::connect(address).await.unwrap();
        let mut buf = [7; SIZE];
        for _ in 0..WARM_UP + MESSAGES {
            conn.send(&buf).await.unwrap();
            conn.recv_exact(&mut buf).await.unwrap();
        }
    })
    .unwrap();
    server.drain(Duration::from_secs(5)).wait().unwrap();
    result.load(Ordering::SeqCst)
}

#[test]
fn a_message_in_event_style_allocates_nothing() {
    let _watchdog = Watchdog::new("a_message_in_event_style_allocates_nothing");
    let meter = Meter { result: Arc::new(AtomicU64::new(u64::MAX)), ..Meter::default() };
    let result = meter.result.clone();
    let server = Server::bind("127.0.0.1:0").workers(1).start_events(move || meter.clone()).unwrap();
    assert_eq!(allocations_of(&server, &result), 0, "for {MESSAGES} messages");
}

#[test]
fn a_message_in_async_style_allocates_nothing() {
    let _watchdog = Watchdog::new("a_message_in_async_style_allocates_nothing");
    let meter = Meter { result: Arc::new(AtomicU64::new(u64::MAX)), ..Meter::default() };
    let result = meter.result.clone();
    let handler = move |mut conn: Connection| {
        let mut meter = meter.clone();
        async move {
            let mut buf = [0; SIZE];
            while conn.recv_exact(&mut buf).within(Duration::from_secs(5)).await.is_ok() {
                meter.message();
                conn.send(&buf).await?;
            }
            Ok(())
        }
    };
    let server = Server::bind("127.0.0.1:0").workers(1).start(handler).unwrap();
    assert_eq!(allocations_of(&server, &result), 0, "for {MESSAGES} messages");
}

#[test]
fn a_message_received_as_a_chunk_allocates_nothing() {
    let _watchdog = Watchdog::new("a_message_received_as_a_chunk_allocates_nothing");
    let meter = Meter { result: Arc::new(AtomicU64::new(u64::MAX)), ..Meter::default() };
    let result = meter.result.clone();
    let handler = move |mut conn: Connection| {
        let mut meter = meter.clone();
        async move {
            while let Some(chunk) = conn.recv_chunk().await? {
                assert_eq!(chunk.len(), SIZE, "one small message at a time");
                meter.message();
                conn.send(&chunk).await?;
            }
            Ok(())
        }
    };
    let server = Server::bind("127.0.0.1:0").workers(1).start(handler).unwrap();
    assert_eq!(allocations_of(&server, &result), 0, "for {MESSAGES} messages");
}
