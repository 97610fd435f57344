//! The numbers of TLS that stand in records: their types, alerts and handshake messages.

/// Types of records, RFC 8446, 5.1.
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;

/// Levels of alerts, RFC 5246, 7.2.
pub(super) const WARNING: u8 = 1;
pub(super) const FATAL: u8 = 2;

/// Alerts, RFC 8446, 6.
pub(super) const CLOSE_NOTIFY: u8 = 0;
pub(super) const UNEXPECTED_MESSAGE: u8 = 10;
pub(super) const BAD_RECORD_MAC: u8 = 20;
pub(super) const RECORD_OVERFLOW: u8 = 22;
pub(super) const DECODE_ERROR: u8 = 50;
pub(super) const PROTOCOL_VERSION: u8 = 70;
pub(super) const INTERNAL_ERROR: u8 = 80;
pub(super) const USER_CANCELED: u8 = 90;
pub(super) const NO_RENEGOTIATION: u8 = 100;

/// Handshake messages, RFC 8446, 4 and RFC 5246, 7.4.
pub(super) const HELLO_REQUEST: u8 = 0;
pub(super) const CLIENT_HELLO: u8 = 1;
pub(super) const NEW_SESSION_TICKET: u8 = 4;
pub(super) const KEY_UPDATE: u8 = 24;
