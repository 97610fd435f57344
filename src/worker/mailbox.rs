//! Messages from other threads to one worker, with at most one wake for many messages.
//!
//! A sender publishes its message, then looks whether the worker sleeps; the worker announces its sleep, then looks
//! whether there is a message. Both pairs are sequentially consistent, so one of the two always sees the other: no
//! message waits for a worker that sleeps. Only the sender that takes the `sleeping` flag down pays for the wake.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) struct Mailbox<M> {
    queue: Mutex<Queue<M>>,
    /// Whether the queue has something, readable without its lock.
    filled: AtomicBool,
    sleeping: AtomicBool,
}

struct Queue<M> {
    messages: Vec<M>,
    /// How the worker is woken; gone with everything that it holds once the mailbox is closed.
    wake: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl<M> Mailbox<M> {
    pub(crate) fn new(wake: impl Fn() + Send + Sync + 'static) -> Mailbox<M> {
        Mailbox {
            queue: Mutex::new(Queue { messages: Vec::new(), wake: Some(Arc::new(wake)) }),
            filled: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
        }
    }

    /// Sends `message`, or gives it back if the worker is gone.
    pub(crate) fn send(&self, message: M) -> Result<(), M> {
        let mut queue = self.lock();
        if queue.wake.is_none() {
            return Err(message);
        }
        queue.messages.push(message);
        drop(queue);
        self.filled.store(true, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            self.wake();
        }
        Ok(())
    }

    fn wake(&self) {
        // Not under the lock, which the woken worker wants next.
        let wake = self.lock().wake.clone();
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Moves all messages into `into`, which must be empty; the worker calls this once per turn.
    pub(crate) fn drain(&self, into: &mut Vec<M>) {
        debug_assert!(into.is_empty(), "the last turn's messages are handled");
        if self.filled.load(Ordering::SeqCst) {
            let mut queue = self.lock();
            self.filled.store(false, Ordering::SeqCst);
            std::mem::swap(&mut queue.messages, into);
        }
    }

    /// Announces that the worker is about to sleep. `false` if it must not: there are messages.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        if self.filled.load(Ordering::SeqCst) {
            self.sleeping.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    pub(crate) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_filled(&self) -> bool {
        self.filled.load(Ordering::SeqCst)
    }

    /// Refuses all further messages, forgets how to wake the worker, and hands over what nobody has handled.
    pub(crate) fn close(&self) -> Vec<M> {
        let mut queue = self.lock();
        drop(queue.wake.take());
        std::mem::take(&mut queue.messages)
    }

    /// A panic cannot happen under this lock, and a queue of messages has no half-done state anyway.
    fn lock(&self) -> MutexGuard<'_, Queue<M>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn many_messages_to_a_sleeper_cost_one_wake() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let count = wakes.clone();
        let mailbox = Mailbox::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        assert!(mailbox.prepare_sleep());
        for n in 0..100 {
            mailbox.send(n).unwrap();
        }
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
        let mut messages = Vec::new();
        mailbox.drain(&mut messages);
        assert_eq!(messages, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn an_awake_worker_is_not_woken() {
        let mailbox = Mailbox::new(|| panic!("no wake is needed"));
        mailbox.send(1).unwrap();
        assert!(!mailbox.prepare_sleep(), "there is a message to handle first");
    }

    #[test]
    fn a_closed_mailbox_gives_messages_back() {
        let mailbox = Mailbox::new(|| {});
        mailbox.send(1).unwrap();
        assert_eq!(mailbox.close(), [1]);
        assert_eq!(mailbox.send(2), Err(2));
    }

    #[test]
    fn a_closed_mailbox_keeps_nothing_of_its_worker() {
        let held = Arc::new(());
        let waker = held.clone();
        let mailbox = Mailbox::new(move || drop(waker.clone()));
        assert!(mailbox.prepare_sleep());
        mailbox.send(1).unwrap();
        mailbox.close();
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn no_message_is_left_with_a_sleeping_worker() {
        const SENDERS: usize = 3;
        const EACH: usize = 20_000;
        let (wake, woken) = mpsc::channel();
        let mailbox = Arc::new(Mailbox::new(move || wake.send(()).expect("the test still listens")));
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let mailbox = mailbox.clone();
                thread::spawn(move || (0..EACH).for_each(|n| mailbox.send(n).unwrap()))
            })
            .collect();
        let mut seen = 0;
        let mut messages = Vec::new();
        while seen < SENDERS * EACH {
            mailbox.drain(&mut messages);
            seen += messages.drain(..).count();
            if seen < SENDERS * EACH && mailbox.prepare_sleep() {
                woken.recv().unwrap();
            }
            mailbox.awake();
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }
}
