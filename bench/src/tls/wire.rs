//! The client's end of a TLS connection: rustls on a socket, with the handshake in the course of reading and writing.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::{IpAddr, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind};

use crate::client::Wire;

/// Writes before the handshake is over are kept until it is. A read of nothing is the server's close_notify; the end of
/// the connection without one is an error.
pub struct Tls {
    session: ClientConnection,
    /// Without it rustls makes one system call for every 4 KiB.
    socket: BufReader<TcpStream>,
}

impl Tls {
    /// Blocks until the handshake is over.
    pub fn connect(socket: TcpStream, config: &Arc<ClientConfig>) -> Result<Tls> {
        let mut tls = Tls::begin(socket, config)?;
        while tls.session.is_handshaking() {
            tls.flush()?;
            tls.receive().context("handshake")?;
        }
        tls.flush()?;
        Ok(tls)
    }

    /// Nothing has been sent when this returns.
    pub fn begin(socket: TcpStream, config: &Arc<ClientConfig>) -> Result<Tls> {
        let server = name(socket.peer_addr()?);
        Ok(Tls {
            session: ClientConnection::new(config.clone(), server)?,
            socket: BufReader::with_capacity(BUFFER, socket),
        })
    }

    /// Full or resumed; `None` while it goes on.
    pub fn handshake_kind(&self) -> Option<HandshakeKind> {
        self.session.handshake_kind()
    }

    /// Tells the server that nothing follows, in TLS and in TCP.
    pub fn finish(&mut self) -> io::Result<()> {
        self.session.send_close_notify();
        self.flush()?;
        self.socket.get_ref().shutdown(std::net::Shutdown::Write)
    }

    fn receive(&mut self) -> io::Result<()> {
        let count = self.session.read_tls(&mut self.socket)?;
        let state = self.session.process_new_packets();
        let state = state.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        if count == 0 && !state.peer_has_closed() {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "an end without close_notify",
            ));
        }
        Ok(())
    }
}

/// The most that is received at once, four records.
const BUFFER: usize = 64 * 1024;

fn name(server: SocketAddr) -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::from(server.ip()))
}

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            self.receive()?;
            // The handshake's answers; what finds no room now goes with the next flush.
            give_way(self.flush())?;
        }
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.session.is_handshaking() {
            self.flush()?;
        }
        let count = self.session.writer().write(bytes)?;
        give_way(self.flush())?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(self.socket.get_mut())?;
        }
        Ok(())
    }
}

fn give_way(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

impl AsFd for Tls {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

impl Wire for Tls {
    /// A read ends with a record.
    const SHORT_READ_DRAINS: bool = false;
}
