//! The end of the engine.

#![allow(unsafe_code)] // one test takes back what the driver leaks on purpose

use std::rc::Weak;

use rustix::io::Errno;

use super::super::TEARDOWN;
use super::*;

#[test]
fn an_engine_with_everything_in_flight_ends_it_all_before_its_memory_goes() {
    for cancels in CANCELS {
        let mut world = World::new();
        let listener = world.listen();
        for index in 0..6 {
            world.reader(index);
        }
        let (paused, _) = world.reader(6);
        world.driver().pause(paused);
        let (sending, _) = world.full(7);
        world.send(sending, "in flight");
        world.connect(8);
        let (bulk, socket) = world.reader(9);
        world.stream(socket, 100_000);
        assert!(world.is_bulk(bulk));
        world.turn();
        // What is handed over, in the queue, in the backlog, completed and not yet looked at.
        world.knock(listener, 1);
        world.kernel.arrives(socket, b"unseen");
        world.driver().submit(false).expect("it enters");
        world.driver().expect_sends(100);
        let (handed, _) = world.open(10);
        world.send(handed, "handed over");
        world.driver().receive(handed);
        world.kernel.state().enter_fails.extend([Errno::BUSY; 3]);
        for index in 11..30 {
            let (token, _) = world.open(index);
            world.driver().receive(token);
        }
        world.kernel.state().cancels = cancels;
        let started = std::time::Instant::now();
        world.end();
        assert!(started.elapsed() < TEARDOWN / 2, "nothing was waited for in vain");
        assert!(!world.kernel.state().abandoned);
    }
}

#[test]
fn a_kernel_that_never_answers_keeps_the_memory_that_it_may_write_to() {
    let mut world = World::new();
    let (token, _) = world.full(0);
    world.send(token, "in flight");
    world.turn();
    let in_flight: *const Outgoing =
        world.driver().connections[0].as_ref().and_then(|c| c.outgoing.as_deref()).expect("a send");
    world.kernel.state().deaf = true;
    let buffers: Weak<Buffers> = Rc::downgrade(&world.buffers);
    let started = std::time::Instant::now();
    world.driver = None;
    assert!(started.elapsed() < TEARDOWN * 2);
    assert!(world.kernel.state().abandoned);
    drop(world);
    assert_eq!(buffers.strong_count(), 1, "the leak");
    // SAFETY: leaked by the driver and by the kernel's `abandon`, so nobody else frees them.
    unsafe {
        assert_eq!((*in_flight).len(), 9);
        drop(Box::from_raw(in_flight.cast_mut()));
        Rc::decrement_strong_count(buffers.as_ptr());
    }
}
