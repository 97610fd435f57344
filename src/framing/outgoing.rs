//! A frame on its way to the send queue: header, body and trailer as one message.

use bytes::Bytes;

use super::Envelope;
use crate::conn::Conn;
use crate::worker::link::Link;

/// Up to this size a frame is put together first, which lets it leave at once: it is one stretch then.
const SMALL_MAX: usize = 512;

/// The body of a frame.
#[derive(Debug)]
pub(super) enum Body<'a> {
    Borrowed(&'a [u8]),
    Owned(Bytes),
}

impl Body<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Body::Borrowed(bytes) => bytes,
            Body::Owned(bytes) => bytes,
        }
    }
}

/// How many bytes a frame has with what is around it.
pub(super) fn total(envelope: &Envelope<'_>, body: &Body<'_>) -> usize {
    envelope.before().len() + body.bytes().len() + envelope.behind().len()
}

/// Queues the bytes from `from` to `to` of a frame with its envelope, for which there is room. [`Link::sent`] has to follow.
pub(super) fn queue(
    link: &Link,
    conn: &mut Conn,
    envelope: &Envelope<'_>,
    body: &Body<'_>,
    (from, to): (usize, usize),
) {
    let parts = [envelope.before(), body.bytes(), envelope.behind()];
    let total = total(envelope, body);
    if from == 0 && to == total && total <= SMALL_MAX {
        let (mut message, mut len) = ([0; SMALL_MAX], 0);
        for part in parts {
            message[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        return link.send(conn, &message[..len]);
    }
    let mut offset = 0;
    for part in parts {
        let begin = from.clamp(offset, offset + part.len()) - offset;
        let end = to.clamp(offset, offset + part.len()) - offset;
        offset += part.len();
        match body {
            Body::Owned(bytes) if begin < end && std::ptr::eq(part, &**bytes) => {
                conn.send_owned(bytes.slice(begin..end));
            }
            _ => conn.send(&part[begin..end]),
        }
    }
}
