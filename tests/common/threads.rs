//! What tests of the blocking style serve.

use wharf::Result;
use wharf::blocking::Connection;

/// Sends back what it receives, until the peer has ended.
pub(crate) fn echo(mut conn: Connection) -> Result<()> {
    let mut buf = [0; 4096];
    loop {
        match conn.recv(&mut buf)? {
            0 => return Ok(()),
            n => conn.send(&buf[..n])?,
        }
    }
}
