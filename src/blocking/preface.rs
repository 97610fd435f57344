//! What a proxy says before a connection's first byte (the PROXY protocol), read on the connection's own thread.
//!
//! Nothing was exchanged with a peer that sends no header, a malformed one, or one that takes too long: it is reset.

use super::connection::Connection;
use super::places::Place;
use crate::config::ProxyProtocol;
use crate::error::{Bound, CloseReason, Deadline};
use crate::proxy::{self, Proxied};

/// What is read at once; most headers are shorter.
const PART: usize = 256;

/// Reads the header, and notes at its place what it tells; the bytes behind it are read next. Says whether the connection goes on.
pub(super) fn read_proxy_header(conn: &mut Connection, place: &Place, proxies: &ProxyProtocol) -> bool {
    let max = conn.line().conn().limits().receive_buffer;
    // All of it, from the accept on.
    let mut timed = conn.within(proxies.within.saturating_sub(place.age()));
    let (mut header, mut part) = (Vec::new(), [0; PART]);
    let reason = loop {
        match timed.recv(&mut part) {
            // It has just ended.
            Ok(0) => return false,
            Ok(n) => header.extend_from_slice(&part[..n]),
            Err(error) if error.is_timeout() && error.close_reason().is_none() => {
                break CloseReason::Timeout(Deadline::ProxyHeader);
            }
            Err(_) => return false,
        }
        match proxy::read(&header) {
            Ok(Some((told, len))) => {
                timed.put_back(&header[len..]);
                let proxied = Proxied::new(conn.peer_addr(), told);
                event!(debug, peer = %proxied.proxy(), "PROXY header read");
                place.set_proxied(proxied);
                conn.line().is_for(place.peer().clone());
                return true;
            }
            Ok(None) if header.len() >= max => {
                let reason = CloseReason::Limit(Bound::ReceiveBuffer);
                conn.line().with_clock(|conn, now| conn.end(reason, now));
                return false;
            }
            Ok(None) => {}
            Err(fault) => break CloseReason::Proxy(fault),
        }
    };
    conn.line().reset(reason);
    false
}
