//! Frames on connections: in both styles and on every backend, however the bytes are cut, and however they end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use wharf::event::Flow;
use wharf::framing::{FrameConnection, FrameHandler, Framed, Frames, Framing, LengthPrefixed, Lines};
use wharf::{Client, CloseReason, Connection, Error, ErrorKind, Limits, Result};

use common::*;

/// Sends every frame back, and keeps the error that it ends with.
#[derive(Clone)]
struct Echo<F> {
    framing: F,
    failure: Arc<Mutex<Option<String>>>,
}

impl<F> Echo<F> {
    fn of(framing: F) -> Echo<F> {
        Echo { framing, failure: Arc::default() }
    }

    fn fail(&self, error: &Error) {
        *self.failure.lock().unwrap() = Some(format!("{error} ({:?})", error.kind()));
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap().clone()
    }
}

impl<F: Framing + Clone + Send + Sync + 'static> Behaviour for Echo<F> {
    type Handler = Frames<F, Echo<F>>;

    async fn run(self, conn: Connection) -> Result<()> {
        let mut framed = Framed::new(conn, self.framing.clone());
        loop {
            match framed.recv().await.inspect_err(|error| self.fail(error))? {
                Some(frame) => framed.send(&frame).await?,
                None => return Ok(()),
            }
        }
    }

    fn handler(self) -> Frames<F, Echo<F>> {
        Frames::new(self.framing.clone(), self)
    }
}

impl<F: Framing + 'static> FrameHandler<F> for Echo<F> {
    fn frame(&mut self, conn: &mut FrameConnection<'_, '_, F>, frame: &[u8]) -> Flow {
        match conn.send_frame(frame) {
            Ok(()) => Flow::Continue,
            Err(error) if error.is_closed() => Flow::Close,
            Err(_) => Flow::Consumed(0),
        }
    }

    fn faulted(&mut self, _: &mut FrameConnection<'_, '_, F>, error: &Error) -> Flow {
        self.fail(error);
        Flow::Close
    }
}

/// Frames of all sizes, some of which hold more than a connection's receive buffer.
fn frames(rng: &mut fastrand::Rng, count: usize, largest: usize) -> Vec<Vec<u8>> {
    let sizes = (0..count).map(|index| match index % 4 {
        0 => rng.usize(0..20),
        1 => rng.usize(0..2_000),
        2 => rng.usize(0..70_000),
        _ => rng.usize(0..=largest),
    });
    sizes.map(|size| (0..size).map(|at| pattern_at(at + size)).collect()).collect()
}

fn stream(framing: &impl Framing, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = Vec::new();
    for frame in frames {
        let envelope = framing.envelope(frame).unwrap();
        stream.extend_from_slice(envelope.before());
        stream.extend_from_slice(frame);
        stream.extend_from_slice(envelope.behind());
    }
    stream
}

fn assert_same(received: &[u8], sent: &[u8], which: usize) {
    assert_eq!(received.len(), sent.len(), "the length of frame {which}");
    assert!(received == sent, "the bytes of frame {which}");
}

scenario! {
    fn frames_come_back_as_they_were_sent_however_the_stream_is_cut(world) {
        let mut rng = fastrand::Rng::with_seed(world.seed());
        let framing = LengthPrefixed::u32().frame_max(300_000);
        let server = world.serve(Echo::of(framing.clone()));
        let address = server.local_addr();
        world.run(async move {
            let sent = frames(&mut rng, 24, 300_000);
            let bytes = stream(&framing, &sent);
            let (reader, mut writer) = Client::connect(address).await.unwrap().split();
            let writing = wharf::spawn(async move {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (part, later) = rest.split_at(rng.usize(1..=50_000).min(rest.len()));
                    writer.send(part).await.unwrap();
                    rest = later;
                }
                writer.finish().await.unwrap();
                writer
            });
            // The halves of another framing's, so that the bytes are looked at from outside.
            let mut reader = reader;
            let mut received = Vec::new();
            while let Some(chunk) = reader.recv_chunk().await.unwrap() {
                received.extend_from_slice(&chunk);
            }
            assert_same(&received, &stream(&framing, &sent), 0);
            drop(writing.await.unwrap());
        });
    }
}

scenario! {
    fn a_frame_that_comes_byte_by_byte_is_whole_in_the_end(world) {
        let server = world.serve_with(Echo::of(Lines::new()), |server| {
            server.limits(Limits::default().receive_buffer(64))
        });
        let address = server.local_addr();
        world.run(async move {
            let mut lines = Framed::new(Client::connect(address).await.unwrap(), Lines::new());
            let line = [b'x'; 700];
            for byte in line {
                lines.get_mut().send(&[byte]).await.unwrap();
                lines.flush().await.unwrap();
            }
            lines.get_mut().send(b"\r\nnext\n").await.unwrap();
            assert_eq!(&*lines.recv().await.unwrap().unwrap(), &line[..]);
            let next = lines.recv().await.unwrap().unwrap();
            assert_eq!(next.as_str().unwrap(), "next");
        });
    }
}

scenario! {
    fn a_frame_larger_than_the_receive_buffer_comes_whole(world) {
        let framing = LengthPrefixed::varint().frame_max(500_000);
        let server = world.serve_with(Echo::of(framing.clone()), |server| {
            server.limits(Limits::default().receive_buffer(1000))
        });
        let address = server.local_addr();
        world.run(async move {
            let mut framed = Framed::new(Client::connect(address).await.unwrap(), framing);
            let frame = pattern(0..500_000);
            for round in 0..3 {
                framed.send(&frame).await.unwrap();
                assert_same(&framed.recv().await.unwrap().unwrap(), &frame, round);
            }
        });
    }
}

scenario! {
    fn a_frame_above_the_maximum_ends_the_connection_and_names_the_option(world) {
        let echo = Echo::of(LengthPrefixed::u32().frame_max(100));
        let server = world.serve(echo.clone());
        let address = server.local_addr();
        world.run(async move {
            let conn = Client::connect(address).await.unwrap();
            let mut framed = Framed::new(conn, LengthPrefixed::u32());
            framed.send(b"fits").await.unwrap();
            framed.send(&[7; 101]).await.unwrap();
            assert_eq!(&*framed.recv().await.unwrap().unwrap(), b"fits", "what came before is answered");
            assert!(framed.recv().await.unwrap().is_none());
        });
        world.finish();
        let failure = echo.failure().unwrap();
        assert!(failure.starts_with("receive from "), "{failure}");
        assert!(failure.ends_with(": 101 bytes are more than `frame_max` allows (100) (Limit)"), "{failure}");
    }
}

scenario! {
    fn a_stream_that_ends_in_mid_frame_is_an_error_of_its_own(world) {
        let echo = Echo::of(LengthPrefixed::u16());
        let server = world.serve(echo.clone());
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"\0\x02ok\0\x0ahalf").await.unwrap();
            conn.finish().await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"\0\x02ok");
        });
        world.finish();
        let failure = echo.failure().unwrap();
        assert!(failure.ends_with("the peer ended in the middle of a frame, after 6 bytes of it (Peer)"), "{failure}");
    }
}

scenario! {
    fn a_stream_that_ends_behind_a_frame_is_no_error(world) {
        let echo = Echo::of(LengthPrefixed::u16());
        let server = world.serve(echo.clone());
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"\0\x02ok\0\0").await.unwrap();
            conn.finish().await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"\0\x02ok\0\0");
        });
        world.finish();
        assert_eq!(echo.failure(), None);
    }
}

scenario! {
    fn a_peer_that_does_not_read_stops_the_frames_and_loses_none(world) {
        let framing = LengthPrefixed::u16();
        let server = world.serve_with(Echo::of(framing.clone()), |server| {
            server.limits(Limits::default().send_marks(1000, 8000).send_max(70_000).receive_buffer(4000))
        });
        let address = server.local_addr();
        world.run(async move {
            let framed = Framed::new(Client::connect(address).await.unwrap(), framing);
            let (mut reader, mut writer) = framed.split();
            let frames: Vec<_> = (0..300).map(|n| pattern(n..n + 10 * n)).collect();
            let sent = frames.clone();
            let writing = wharf::spawn(async move {
                for frame in &sent {
                    writer.send(frame).await.unwrap();
                }
                writer.get_mut().finish().await.unwrap();
                writer
            });
            // Nobody reads before the writer has been stopped, or has sent all.
            for _ in 0..20 {
                wharf::sleep(Duration::from_micros(200)).await;
            }
            for (which, frame) in frames.iter().enumerate() {
                assert_same(&reader.recv().await.unwrap().unwrap(), frame, which);
            }
            assert!(reader.recv().await.unwrap().is_none());
            drop(writing.await.unwrap());
        });
    }
}

/// Polls `future` at most `polls` times and drops it then; `None` if it was not done.
async fn interrupted<T: Future>(polls: usize, future: T) -> Option<T::Output> {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|cx| {
        if polled == polls {
            return Poll::Ready(None);
        }
        polled += 1;
        let outcome = future.as_mut().poll(cx);
        if outcome.is_pending() {
            cx.waker().wake_by_ref();
        }
        outcome.map(Some)
    })
    .await
}

scenario! {
    async fn calls_that_are_given_up_lose_nothing_and_send_nothing_by_halves(world) {
        let mut rng = fastrand::Rng::with_seed(world.seed());
        let framing = LengthPrefixed::u32().frame_max(200_000);
        let server = world.serve(Echo::of(framing.clone()));
        let address = server.local_addr();
        world.run(async move {
            let framed = Framed::new(Client::connect(address).await.unwrap(), framing);
            let (mut reader, mut writer) = framed.split();
            let sent = frames(&mut rng, 24, 200_000);
            let expected = sent.clone();
            let mut lots = fastrand::Rng::with_seed(rng.u64(..));
            let writing = wharf::spawn(async move {
                for frame in &sent {
                    while interrupted(lots.usize(0..3), writer.send(frame)).await.transpose().unwrap().is_none() {
                        wharf::sleep(Duration::from_micros(lots.u64(0..200))).await;
                    }
                }
                writer.get_mut().finish().await.unwrap();
                writer
            });
            for (which, frame) in expected.iter().enumerate() {
                let received = loop {
                    let tiny = Duration::from_micros(rng.u64(0..300));
                    match rng.bool() {
                        true => match interrupted(rng.usize(0..3), reader.recv()).await {
                            Some(received) => break received.unwrap().unwrap(),
                            None => wharf::sleep(tiny).await,
                        },
                        false => match reader.recv().within(tiny).await {
                            Err(error) if error.is_timeout() => {}
                            received => break received.unwrap().unwrap(),
                        },
                    }
                };
                assert_same(&received, frame, which);
            }
            assert!(reader.recv().await.unwrap().is_none());
            drop(writing.await.unwrap());
        });
    }
}

scenario! {
    async fn a_frame_larger_than_the_send_queue_that_is_given_up_resets_the_connection(world) {
        let server = world.serve(behaviours::Discard);
        let address = server.local_addr();
        world.run(async move {
            let limits = Limits::default().send_marks(1000, 8000).send_max(8000);
            let conn = Client::new(address).limits(limits).open().await.unwrap();
            let mut framed = Framed::new(conn, LengthPrefixed::u32());
            framed.send(&[7; 100_000]).await.unwrap();
            framed.flush().await.unwrap();
            let given_up = interrupted(1, framed.send(&[7; 4_000_000])).await;
            assert!(given_up.is_none());
            let error = framed.send(b"more").await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::LocalReset));
        });
    }
}

scenario! {
    async fn what_came_behind_the_last_frame_is_still_to_be_received(world) {
        let server = world.serve(behaviours::Echo);
        let address = server.local_addr();
        world.run(async move {
            let mut lines = Framed::new(Client::connect(address).await.unwrap(), Lines::new());
            lines.get_mut().send(b"upgrade\nand then something else").await.unwrap();
            assert_eq!(&*lines.recv().await.unwrap().unwrap(), b"upgrade");
            let mut conn = lines.into_inner();
            let mut rest = [0; 23];
            conn.recv_exact(&mut rest).await.unwrap();
            assert_eq!(&rest, b"and then something else");
        });
    }
}

scenario! {
    async fn a_frame_that_was_kept_stays_as_it_was(world) {
        let server = world.serve(behaviours::Echo);
        let address = server.local_addr();
        world.run(async move {
            let mut lines = Framed::new(Client::connect(address).await.unwrap(), Lines::new());
            let mut kept = Vec::new();
            for n in 0..200 {
                lines.send(format!("line {n}").as_bytes()).await.unwrap();
                kept.push(lines.recv().await.unwrap().unwrap());
            }
            for (n, line) in kept.iter().enumerate() {
                assert_eq!(line.as_str().unwrap(), format!("line {n}"));
            }
        });
    }
}

scenario! {
    async fn what_is_no_frame_is_not_sent_and_the_next_one_is(world) {
        let server = world.serve(behaviours::Echo);
        let address = server.local_addr();
        world.run(async move {
            let conn = Client::connect(address).await.unwrap();
            let mut lines = Framed::new(conn, Lines::new().frame_max(10));
            let error = lines.send(b"two\nlines").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Caller);
            let error = lines.send(b"more than ten bytes").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Limit);
            assert!(error.to_string().contains("`frame_max`"), "{error}");
            lines.send_owned(&b"fine"[..]).await.unwrap();
            assert_eq!(&*lines.recv().await.unwrap().unwrap(), b"fine");
        });
    }
}

#[cfg(feature = "tokio-util")]
scenario! {
    /// A length, and lines: what the codec does not decode yet is kept, and what it never decodes is bounded.
    async fn codecs_of_tokio_util_run_on_a_connection(world) {
        use tokio_util::codec::{LengthDelimitedCodec, LinesCodec};
        use wharf::framing::Coded;

        let server = world.serve(Echo::of(LengthPrefixed::u32()));
        let address = server.local_addr();
        world.run(async move {
            let mut coded = Coded::new(Client::connect(address).await.unwrap(), LengthDelimitedCodec::new());
            for size in [0, 1, 1000, 300_000] {
                coded.send(bytes::Bytes::from(pattern(0..size))).await.unwrap();
                let late = coded.recv();
                assert!(interrupted(1, late).await.is_none(), "the answer takes a turn");
                assert_same(&coded.recv().await.unwrap().unwrap(), &pattern(0..size), size);
            }
            coded.get_mut().send(b"\0\0\0\x04rest\0\0\0\x04more").await.unwrap();
            assert_eq!(&coded.recv().await.unwrap().unwrap()[..], b"rest");
            let mut conn = coded.into_inner();
            conn.recv_exact(&mut [0; 8]).await.unwrap();
            conn.finish().await.unwrap();
            let mut lines = Coded::new(conn, LinesCodec::new());
            assert!(lines.recv().await.unwrap().is_none());
        });
        let server = world.serve(behaviours::Echo);
        let address = server.local_addr();
        world.run(async move {
            let conn = Client::connect(address).await.unwrap();
            let mut lines = Coded::new(conn, LinesCodec::new()).unread_max(5000);
            lines.get_mut().send(&[b'x'; 200_000]).await.unwrap();
            let error = lines.recv().await.unwrap_err().to_string();
            assert!(error.contains("`unread_max` allows (5000)"), "{error}");
        });
    }
}

#[cfg(feature = "tokio-util")]
scenario! {
    async fn a_message_of_a_codec_larger_than_the_send_queue_that_is_given_up_resets_the_connection(world) {
        use tokio_util::codec::LengthDelimitedCodec;
        use wharf::framing::Coded;

        // It answers whatever comes whole.
        let server = world.serve(Echo::of(LengthPrefixed::u32().frame_max(8_000_000)));
        let address = server.local_addr();
        world.run(async move {
            let limits = Limits::default().send_marks(1000, 8000).send_max(8000);
            let conn = Client::new(address).limits(limits).open().await.unwrap();
            let mut coded = Coded::new(conn, LengthDelimitedCodec::new());
            coded.send(bytes::Bytes::from(pattern(0..100_000))).await.unwrap();
            assert_same(&coded.recv().await.unwrap().unwrap(), &pattern(0..100_000), 0);
            coded.get_mut().flush().await.unwrap();
            let given_up = interrupted(1, coded.send(bytes::Bytes::from(vec![7; 4_000_000]))).await;
            assert!(given_up.is_none());
            let error = Error::from(coded.send(bytes::Bytes::from_static(b"more")).await.unwrap_err());
            assert_eq!(error.close_reason(), Some(CloseReason::LocalReset));
            assert!(coded.recv().await.is_err(), "the peer was told nothing that it could have answered");
        });
    }
}

#[cfg(feature = "tokio-util")]
scenario! {
    async fn a_message_of_a_codec_that_is_given_up_before_any_of_it_is_queued_is_not_sent(world) {
        use tokio_util::codec::LengthDelimitedCodec;
        use wharf::framing::Coded;

        let server = world.serve(Echo::of(LengthPrefixed::u32()));
        let address = server.local_addr();
        world.run(async move {
            let mut coded = Coded::new(Client::connect(address).await.unwrap(), LengthDelimitedCodec::new());
            assert!(interrupted(0, coded.send(bytes::Bytes::from_static(b"given up"))).await.is_none());
            coded.send(bytes::Bytes::from_static(b"sent")).await.unwrap();
            assert_eq!(&coded.recv().await.unwrap().unwrap()[..], b"sent");
        });
    }
}

/// The peer sends the beginning of a frame, and then a byte now and then.
#[test]
fn a_frame_that_drips_is_ended_by_the_receive_rate() {
    use wharf::sim::{Faults, Simulation};
    use wharf::{Deadline, Deadlines, ReceiveRate, Server};

    for event in [false, true] {
        let mut simulation = Simulation::with_faults(1, Faults::none());
        let rate = ReceiveRate::new(100).grace(Duration::from_secs(5));
        let server = Server::bind("10.0.0.1:0").deadlines(Deadlines::default().receive_rate(rate));
        let echo = Echo::of(LengthPrefixed::u32());
        let server = match event {
            true => simulation.serve_events(server, move || echo.clone().handler()),
            false => simulation.serve(server, move |conn| echo.clone().run(conn)),
        };
        let server = server.unwrap();
        let address = server.local_addr();
        let outcome = simulation.client("10.0.0.2", async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(&[0, 0, 0xff, 0xff]).await.unwrap();
            for _ in 0..30 {
                wharf::sleep(Duration::from_secs(1)).await;
                if conn.send(b"x").await.is_err() {
                    return;
                }
            }
        });
        simulation.run();
        outcome.take().unwrap();
        let closes = server.stats().closes;
        let rate = CloseReason::Timeout(Deadline::ReceiveRate);
        assert!(closes.iter().any(|(reason, count)| *reason == rate && *count == 1), "{event}: {closes:?}");
        server.stop();
        simulation.run();
    }
}

mod blocking {
    use wharf::blocking::{Connection, Listener, connect};
    use wharf::framing::blocking::Framed;

    use super::*;

    #[test]
    fn frames_go_both_ways_over_blocking_connections() {
        let server = Listener::bind("127.0.0.1:0").unwrap().serve(|conn: Connection| {
            let mut framed = Framed::new(conn, LengthPrefixed::u16());
            while let Some(frame) = framed.recv()? {
                framed.send(&frame)?;
            }
            Ok(())
        });
        let server = server.unwrap();
        let mut framed = Framed::new(connect(server.local_addr()).unwrap(), LengthPrefixed::u16());
        for len in [0, 1, 100, 65_535] {
            let frame = vec![len as u8; len];
            framed.send(&frame).unwrap();
            assert!(framed.recv().unwrap().unwrap() == frame, "{len} bytes");
        }
        drop(framed);
        let stats = server.drain(Duration::from_secs(20)).wait().unwrap();
        assert_eq!(stats.closed(CloseReason::Peer), 1);
    }

    #[test]
    fn errors_of_the_connection_stay_what_they_are() {
        let mut listener = Listener::bind("127.0.0.1:0").unwrap();
        let mut near = Framed::new(connect(listener.local_addr()).unwrap(), Lines::new());
        let mut far = listener.accept().unwrap();
        far.send(b"half a li").unwrap();
        near.get_mut().set_deadline(Duration::from_millis(50));
        let error = near.recv().unwrap_err();
        assert_eq!(error.close_reason(), Some(CloseReason::Timeout(wharf::Deadline::Handler)), "{error}");
        assert_eq!(
            error.to_string(),
            format!(
                "receive from {}: connection is closed: handler's deadline passed",
                listener.local_addr()
            )
        );
        assert_eq!(near.into_inner().1, b"half a li"[..], "what came is not lost");

        let mut near = Framed::new(connect(listener.local_addr()).unwrap(), Lines::new());
        listener.accept().unwrap().reset();
        let error = near.recv().unwrap_err();
        assert_eq!(
            (error.kind(), error.close_reason()),
            (ErrorKind::Peer, Some(CloseReason::PeerReset)),
            "{error}"
        );
        let error = near.send(b"nobody hears").unwrap_err();
        assert!(error.is_closed(), "{error}");
    }
}
