//! tokio on one thread, with a write for every message of 64 bytes: how request and response protocols are written.

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{BUFFER_SIZE, Field, MESSAGE_SIZE, Peer, tokio_current};

pub const PEER: Peer = Peer {
    name: "tokio_per_message",
    about: "as tokio_current, but one write_all for each message of 64 B",
    field: Field::SmallMessages,
    ..Peer::echo(serve)
};

fn serve() -> Result<()> {
    tokio_current::run(answer)
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_SIZE];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..]).await?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let whole = filled - filled % MESSAGE_SIZE;
        for message in buffer[..whole].chunks(MESSAGE_SIZE) {
            stream.write_all(message).await?;
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}
