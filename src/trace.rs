//! Lifecycle events for the `tracing` feature; without it they compile to nothing. Never on the path of a message.

/// `event!(level, fields..., "message")`, as in the tracing crate.
#[cfg(feature = "tracing")]
macro_rules! event {
    ($level:ident, $($rest:tt)*) => { tracing::$level!(target: "wharf", $($rest)*) };
}

#[cfg(not(feature = "tracing"))]
macro_rules! event {
    ($($ignored:tt)*) => {};
}
