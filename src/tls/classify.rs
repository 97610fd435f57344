//! What an error of rustls means to the connection.

use crate::tls_fault::TlsFault;

pub(super) fn classify(error: &rustls::Error) -> (TlsFault, String) {
    (TlsFault::Misbehaved, error.to_string())
}
