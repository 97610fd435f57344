//! What a server and its successor say to each other: messages of 16 bytes, one of them with descriptors.
//!
//! ```text
//!   successor                      predecessor
//!      Ask      ---------------->
//!               <----------------  Offer(n), with the upgrade socket and n listeners
//!      (starts its workers)        (goes on serving)
//!      Ready(mask of n) -------->  drains; the listeners in the mask are the successor's
//!               <----------------  TooLate instead, if it has waited too long
//! ```
//!
//! `Ready` needs no answer: once it is written it will be read, unless the predecessor ends before. Knows nothing of servers.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::server::LISTENERS_MAX;

const MAGIC: &[u8; 5] = b"WHARF";
const VERSION: u8 = 1;
const LENGTH: usize = 16;
/// The upgrade socket and all listeners.
const DESCRIPTORS_MAX: usize = 1 + LISTENERS_MAX;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Which listeners are there?
    Ask,
    /// So many, and their descriptors with this message.
    Offer(u64),
    /// I serve; those in the mask are mine.
    Ready(u64),
    /// It has taken too long; they stay mine.
    TooLate,
}

impl Message {
    fn encode(self) -> [u8; LENGTH] {
        let (kind, value) = match self {
            Message::Ask => (1, 0),
            Message::Offer(count) => (2, count),
            Message::Ready(mask) => (3, mask),
            Message::TooLate => (4, 0),
        };
        let mut bytes = [0; LENGTH];
        bytes[..5].copy_from_slice(MAGIC);
        (bytes[5], bytes[6]) = (VERSION, kind);
        bytes[8..].copy_from_slice(&u64::to_le_bytes(value));
        bytes
    }

    fn decode(bytes: &[u8; LENGTH]) -> io::Result<Message> {
        let ([magic @ .., version, kind, _], value) = bytes.split_first_chunk::<8>().expect("16 are 8 and 8");
        let value = u64::from_le_bytes(value.try_into().expect("16 are 8 and 8"));
        if magic != MAGIC {
            return Err(invalid("what answers is no server with a hand-over"));
        }
        if *version != VERSION {
            return Err(invalid(format!("it speaks version {version} of the hand-over, not {VERSION}")));
        }
        match kind {
            1 => Ok(Message::Ask),
            2 if value <= LISTENERS_MAX as u64 => Ok(Message::Offer(value)),
            3 => Ok(Message::Ready(value)),
            4 => Ok(Message::TooLate),
            _ => Err(invalid("it does not keep to the hand-over's protocol")),
        }
    }
}

/// Sends a message, with descriptors. An empty queue has room for it, and others write nothing to this socket.
pub(super) fn send(stream: impl AsFd, message: Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = message.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // Padding may leave room for one more than there may be.
    let fit = descriptors.len() <= DESCRIPTORS_MAX
        && (descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
    if !fit {
        return Err(invalid("more listeners than a server may have"));
    }
    let sent = loop {
        match sendmsg(&stream, &[IoSlice::new(&bytes)], &mut control, SEND) {
            Err(Errno::INTR) => {}
            sent => break sent?,
        }
    };
    if sent < LENGTH { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
}

/// What a message was awaited for, and came instead.
#[derive(Debug)]
pub(super) enum Received {
    Message(Message, Vec<OwnedFd>),
    /// The other side has closed.
    End,
    /// What `interrupt` stands for has happened.
    Interrupted,
}

/// Receives the next message, as a whole until `deadline`, from a socket that does not block.
pub(super) fn receive(
    stream: impl AsFd,
    deadline: Instant,
    interrupt: Option<BorrowedFd<'_>>,
) -> io::Result<Received> {
    let (mut bytes, mut filled) = ([0; LENGTH], 0);
    let mut descriptors = Vec::new();
    loop {
        match receive_some(&stream, &mut bytes[filled..], &mut descriptors) {
            Ok(0) if filled == 0 => return Ok(Received::End),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                if !await_readable(stream.as_fd(), Some(deadline), interrupt)? {
                    return Ok(Received::Interrupted);
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        if filled == LENGTH {
            return Ok(Received::Message(Message::decode(&bytes)?, descriptors));
        }
    }
}

fn receive_some(stream: &impl AsFd, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(into)], &mut control, RECEIVE)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    // Also when this process has no room for more descriptors (unix(7)).
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::MFILE);
    }
    Ok(received.bytes)
}

/// Waits until `socket` can be read. `false` if `interrupt` comes first; an error when the time is up.
pub(super) fn await_readable(
    socket: BorrowedFd<'_>,
    deadline: Option<Instant>,
    interrupt: Option<BorrowedFd<'_>>,
) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec::try_from(left).expect("deadlines are not that late"));
        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut watched = [watch(socket), watch(interrupt.unwrap_or(socket))];
        let ready = match poll(&mut watched, timeout.as_ref()) {
            Err(Errno::INTR) => continue,
            ready => ready?,
        };
        if interrupt.is_some() && !watched[1].revents().is_empty() {
            return Ok(false);
        }
        if ready > 0 {
            return Ok(true);
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

#[cfg(target_os = "linux")]
const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
#[cfg(target_os = "linux")]
const RECEIVE: RecvFlags = RecvFlags::DONTWAIT.union(RecvFlags::CMSG_CLOEXEC);
// Nothing is ever sent or received there: `Handover::validate` refuses.
#[cfg(not(target_os = "linux"))]
const SEND: SendFlags = SendFlags::DONTWAIT;
#[cfg(not(target_os = "linux"))]
const RECEIVE: RecvFlags = RecvFlags::DONTWAIT;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().expect("a pair")
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    fn message(received: io::Result<Received>) -> (Message, Vec<OwnedFd>) {
        match received {
            Ok(Received::Message(message, descriptors)) => (message, descriptors),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let (near, far) = pair();
        let all = [Message::Ask, Message::Offer(64), Message::Ready(u64::MAX), Message::TooLate];
        for sent in all {
            send(&near, sent, &[]).expect("it has room");
            assert_eq!(message(receive(&far, soon(), None)).0, sent);
        }
        drop(near);
        assert!(matches!(receive(&far, soon(), None), Ok(Received::End)));
    }

    #[test]
    fn as_many_descriptors_as_there_may_be_come_along() {
        let (near, far) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let all = [listener.as_fd(); DESCRIPTORS_MAX];
        send(&near, Message::Offer(64), &all).expect("they fit");
        let (_, descriptors) = message(receive(&far, soon(), None));
        assert_eq!(descriptors.len(), DESCRIPTORS_MAX);
        let same = TcpListener::from(descriptors.into_iter().next().expect("there are some"));
        assert_eq!(same.local_addr().expect("it has one"), listener.local_addr().expect("it has one"));
        let one_more = [listener.as_fd(); DESCRIPTORS_MAX + 1];
        assert!(send(&near, Message::Offer(64), &one_more).is_err());
    }

    #[test]
    fn what_is_no_message_is_refused_and_nothing_is_waited_for_without_end() {
        let refused = |bytes: &[u8]| {
            let (mut near, far) = pair();
            near.write_all(bytes).expect("it has room");
            receive(&far, soon(), None).expect_err("it is none").to_string()
        };
        assert!(refused(b"GET / HTTP/1.1\r\n\r\n").contains("no server with a hand-over"));
        let mut other_version = Message::Ask.encode();
        other_version[5] = 9;
        assert!(refused(&other_version).contains("version 9"));
        assert!(refused(&Message::Offer(65).encode()).contains("does not keep to"));
        assert_eq!(
            refused(&Message::Ask.encode()[..15]),
            io::Error::from(io::ErrorKind::TimedOut).to_string()
        );
        assert_eq!(refused(b""), io::Error::from(io::ErrorKind::TimedOut).to_string());
    }

    #[test]
    fn whoever_waits_can_be_interrupted() {
        let (_near, far) = pair();
        let (end, ended) = pair();
        drop(end);
        let received = receive(&far, Instant::now() + Duration::from_secs(60), Some(ended.as_fd()));
        assert!(matches!(received, Ok(Received::Interrupted)), "{received:?}");
    }
}
