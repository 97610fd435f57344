//! What is new on a connection, for whoever waits for it: [`News`].

/// Who has something new to look at: a set of bits.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct News(u8);

impl News {
    pub(super) const READABLE: News = News(1);
    pub(super) const WRITABLE: News = News(2);
    pub(super) const UNBLOCKED: News = News(4);
    pub(super) const CLOSED: News = News(8);
    pub(super) const HUNG_UP: News = News(16);
    pub(super) const UNSECURED: News = News(32);

    pub(super) fn add(&mut self, news: News) {
        self.0 |= news.0;
    }

    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Bytes, the peer's end, or a failure.
    pub(crate) fn readable(self) -> bool {
        self.0 & News::READABLE.0 != 0
    }

    /// Room in the queue, an empty queue, or a failure.
    pub(crate) fn writable(self) -> bool {
        self.0 & News::WRITABLE.0 != 0
    }

    /// Room in the queue, for somebody who was told to wait for it.
    pub(crate) fn unblocked(self) -> bool {
        self.0 & News::UNBLOCKED.0 != 0
    }

    /// TLS is off the connection, which goes on.
    pub(crate) fn unsecured(self) -> bool {
        self.0 & News::UNSECURED.0 != 0
    }

    /// The connection is closed, once.
    pub(crate) fn closed(self) -> bool {
        self.0 & News::CLOSED.0 != 0
    }

    /// The peer's end is known, or the connection's is certain; once.
    pub(crate) fn hung_up(self) -> bool {
        self.0 & News::HUNG_UP.0 != 0
    }
}
