//! A first look.

use std::time::Duration;
use wharf::{Client, Connection, Server};
#[test]
fn real() {
    let server = Server::bind("127.0.0.1:0")
        .workers(2)
        .start(|mut conn: Connection| async move {
            let mut buf = [0; 64];
            loop {
                let n = conn.recv(&mut buf).await?;
                if n == 0 {
                    return Ok(());
                }
                conn.send(&buf[..n]).await?;
            }
        })
        .unwrap();
    let addr = server.local_addr();
    wharf::run(async move {
        for _ in 0..10 {
            let mut c = Client::connect(addr).await.unwrap();
            for i in 0..100u32 {
                c.send(&i.to_be_bytes()).await.unwrap();
                let mut b = [0; 4];
                c.recv_exact(&mut b).within(Duration::from_secs(1)).await.unwrap();
                assert_eq!(b, i.to_be_bytes());
            }
            c.finish().await.unwrap();
            assert_eq!(c.recv(&mut [0; 4]).await.unwrap(), 0);
        }
    })
    .unwrap();
    let stats = server.drain(Duration::from_secs(5)).wait().unwrap();
    println!("{stats:?}");
}
