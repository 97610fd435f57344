//! What a connection knows of the server whose it is: its name there, its label, and what its proxy has told.

use std::sync::Arc;

use super::connection::Connection;
use crate::proxy::Proxied;
use crate::worker::link::ConnectionId;

impl Connection {
    /// Names the connection among all that its server ever has; `None` on a client, and for one that [`Listener::accept`] gave.
    ///
    /// [`Listener::accept`]: super::Listener::accept
    pub fn id(&self) -> Option<ConnectionId> {
        self.seen().place().map(|place| place.id())
    }

    /// What the proxy told that the connection came through. `None` if the server expects no proxies
    /// ([`Listen::proxy_protocol`](crate::Listen::proxy_protocol)), and on a client.
    pub fn proxied(&self) -> Option<&Proxied> {
        self.seen().place()?.proxied()
    }

    /// Names it for those who look on: [`ServerHandle::list`](super::ServerHandle::list) shows the label. Where there is no server
    /// nothing happens.
    pub fn set_label(&self, label: impl Into<Arc<str>>) {
        if let Some(place) = self.seen().place() {
            place.set_label(label.into());
        }
    }
}
