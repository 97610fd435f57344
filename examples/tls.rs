//! TLS in one program: a server with a certificate of its own making, and a client that takes nobody else for it.
//!
//! ```text
//! $ cargo run --example tls --features self-signed
//! server: ["localhost"], public key 9d3f26c0...
//! client: TLS 1.3, TLS13_AES_128_GCM_SHA256, "greeting/1", Verified
//! client: heard "hello, who asks for localhost"
//! client: a stranger is refused: certificate self-signed and not trusted
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use wharf::tls::{Acceptor, ClientTls, Connector, Identity, ServerTls, Trust};
use wharf::{Client, Connection, Error, Result, Server};

const SOON: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    // A server that is known to others has files: `Identity::from_files("chain.pem", "key.pem")`.
    let identity = Identity::self_signed(["localhost"])?;
    let certificate = identity.chain().next().unwrap_or_default().to_vec();
    let pin = identity.public_key_hash();
    println!("server: {:?}, public key {}...", identity.names(), hex(&pin[..4]));
    let acceptor = Acceptor::new(ServerTls::new(identity).alpn(["greeting/1"]))?;
    let server = Server::bind("127.0.0.1:0").tls(&acceptor).start(greet)?;

    // Without `trust` it is those whom the system trusts; the pin comes on top of that, and need not be.
    let tls = ClientTls::new().trust(Trust::from_der(certificate)?).pin_public_key(pin).alpn(["greeting/1"]);
    // Each connect is to look at the certificate here: a session that is resumed does not show it again.
    let connector = Connector::new(tls.server_name("localhost").resumption(false))?;
    let client = Client::new(server.local_addr()).tls(&connector);
    wharf::run(async {
        let mut conn = client.open().within(SOON).await?;
        let info = conn.tls().ok_or(Error::other("it has begun with TLS"))?;
        let protocol = String::from_utf8_lossy(info.alpn().unwrap_or_default());
        println!("client: {}, {}, {protocol:?}, {:?}", info.version(), info.cipher(), info.verification());
        let mut greeting = Vec::new();
        // The end is the server's close_notify: had somebody cut the greeting short, this would be an error.
        while let Some(chunk) = conn.recv_chunk().within(SOON).await? {
            greeting.extend_from_slice(&chunk);
        }
        println!("client: heard {:?}", String::from_utf8_lossy(&greeting));
        Ok::<(), Error>(())
    })??;

    // A server of the same name that nobody vouches for.
    acceptor.replace(ServerTls::new(Identity::self_signed(["localhost"])?))?;
    let refused = wharf::run(async { client.open().within(SOON).await })?;
    if let Some(fault) = refused.err().and_then(|error| error.tls_fault()) {
        println!("client: a stranger is refused: {fault}");
    }
    server.drain(SOON).wait()?;
    Ok(())
}

/// Begins when the handshake is over.
async fn greet(mut conn: Connection) -> Result<()> {
    let name = conn.tls().and_then(|info| info.server_name().map(String::from));
    conn.send(format!("hello, who asks for {}", name.unwrap_or_default()).as_bytes()).await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
