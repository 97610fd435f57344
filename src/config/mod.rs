//! Every default in one place, and the refusal of options that make no sense.

mod access;
mod backend;
mod deadlines;
mod handover;
mod limits;
mod proxy;
mod sockets;

pub use access::Access;
pub use backend::Backend;
pub use deadlines::{Deadlines, ReceiveRate};
pub use handover::Handover;
pub use limits::{AcceptRate, Limits, OverLimit, WhenFull};
pub use proxy::ProxyProtocol;
pub use sockets::SocketOptions;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert!(Limits::default().validate().is_ok());
        assert!(Deadlines::default().validate().is_ok());
        assert!(SocketOptions::default().validate().is_ok());
    }

    #[test]
    fn a_bad_value_is_refused_with_the_name_of_its_option() {
        let refused = [
            (Limits::default().connections(0).validate(), "connections"),
            (Limits::default().memory(1).validate(), "memory"),
            (Limits::default().per_address(0).validate(), "per_address"),
            (Limits::default().ipv6_prefix(0).validate(), "ipv6_prefix"),
            (Limits::default().accept_rate(AcceptRate::new(0)).validate(), "accept_rate"),
            (Limits::default().receive_buffer(0).validate(), "receive_buffer"),
            (Limits::default().send_marks(8, 8).validate(), "send_marks"),
            (Limits::default().send_max(1).validate(), "send_max"),
            (Deadlines::default().first_byte(Duration::ZERO).validate(), "first_byte"),
            (Deadlines::default().idle(Duration::ZERO).validate(), "idle"),
            (Deadlines::default().receive_rate(ReceiveRate::new(0)).validate(), "receive_rate"),
            (SocketOptions::default().backlog(0).validate(), "backlog"),
            (SocketOptions::default().keepalive(Duration::ZERO).validate(), "keepalive"),
        ];
        for (result, option) in refused {
            let message = result.expect_err(option).to_string();
            assert!(message.contains(&format!("`{option}`")), "{message}");
        }
    }
}
