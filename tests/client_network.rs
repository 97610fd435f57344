//! Clients on networks that are broken: in a network namespace of their own, with names in a mount namespace of their own.
//!
//! Both need rights that not everybody has. Where they are missing the tests say that they are skipped.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "figures are told with --nocapture")]

mod common;

use std::io::{self, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wharf::{Backend, Client, Error};

use common::child::{child_under, role};
use common::{Watchdog, backends};

/// A machine with a loopback device; with `dark0`, that nobody reads from: it swallows what is sent to 10.9.0.0/24 or fd09::/64; with a route
/// that says that 10.8.0.0/24 cannot be reached; and with names and a name server that are the test's own.
const MACHINE: &str = "
set -e
ip link set lo up
ip tuntap add dev dark0 mode tun
ip addr add 10.9.0.1/24 dev dark0
ip -6 addr add fd09::1/64 dev dark0 nodad
ip link set dark0 up
for try in $(seq 250); do ip -6 route get fd09::7 >/dev/null 2>&1 && break; sleep 0.02; done
ip route add unreachable 10.8.0.0/24
folder=$(mktemp -d)
mount -t tmpfs none $folder
printf '%s' \"$HOSTS\" > $folder/hosts
printf 'nameserver 127.0.0.1\\noptions timeout:30 attempts:1\\n' > $folder/resolv.conf
printf 'hosts: files dns\\n' > $folder/nsswitch.conf
for file in hosts resolv.conf nsswitch.conf; do
  if [ -e /etc/$file ]; then mount --bind $folder/$file /etc/$file; fi
done
umount -l $folder
rmdir $folder
exec \"$@\"
";

/// Runs the test `name` on each engine on such a machine, where the system knows these names.
fn on_a_machine(name: &str, hosts: &str, body: fn(Backend)) {
    if let Some(backend) = role() {
        return body(backend);
    }
    if let Err(problem) = can_have_namespaces() {
        let line =
            format!("\n*** SKIPPED: {name}: no namespaces for networks and mounts here: {problem} ***\n");
        let _ = io::stderr().write_all(line.as_bytes());
        return;
    }
    for backend in backends(name) {
        let _watchdog = Watchdog::new(name);
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "private", "sh", "-c", MACHINE, "sh"]);
        command.env("HOSTS", hosts);
        let mut child = child_under(command, name, backend);
        drop(child.stdin.take());
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(child.wait().unwrap().success(), "{backend}: {output}");
        output
            .lines()
            .filter_map(|line| Some(line.split_once("figure: ")?.1))
            .for_each(|told| println!("{told}"));
    }
}

fn can_have_namespaces() -> Result<(), String> {
    let probe = "ip tuntap add dev dark0 mode tun && mount -t tmpfs none /mnt";
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", probe])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// The same in the blocking style.
fn timed_blocking(client: &Client) -> (Duration, Result<String, Error>) {
    let began = Instant::now();
    let connected = client.open_blocking().map(|mut conn| {
        conn.reset();
        conn.peer_addr().to_string()
    });
    (began.elapsed(), connected)
}

/// Connects, in both styles, and tells how long the slower one took.
fn timed(backend: Backend, client: Client) -> (Duration, Result<String, Error>) {
    let blocking = timed_blocking(&client);
    slower(blocking, timed_awaited(backend, client))
}

/// Both styles tell the same.
fn slower(
    blocking: (Duration, Result<String, Error>),
    awaited: (Duration, Result<String, Error>),
) -> (Duration, Result<String, Error>) {
    assert_eq!(told(&blocking.1), told(&awaited.1));
    if blocking.0 > awaited.0 { blocking } else { awaited }
}

fn told(connected: &Result<String, Error>) -> String {
    match connected {
        Ok(peer) => peer.clone(),
        Err(error) => error.to_string(),
    }
}

fn timed_awaited(backend: Backend, client: Client) -> (Duration, Result<String, Error>) {
    let began = Instant::now();
    let connected = wharf::run_on(backend, async move {
        let mut conn = client.open().await?;
        let peer = conn.peer_addr().to_string();
        conn.reset().await;
        Ok(peer)
    });
    (began.elapsed(), connected.unwrap())
}

/// The same with each style at its quickest: of three tries, and of more if neither was as quick as it should be. What else goes on on
/// this machine is not the client's business.
fn quickest(backend: Backend, client: &Client, within: Duration) -> (Duration, Result<String, Error>) {
    let (mut blocking, mut awaited) = (timed_blocking(client), timed_awaited(backend, client.clone()));
    for tries in 1..15 {
        if tries >= 3 && blocking.0.max(awaited.0) < within {
            break;
        }
        let again = (timed_blocking(client), timed_awaited(backend, client.clone()));
        assert_eq!((told(&again.0.1), told(&again.1.1)), (told(&blocking.1), told(&awaited.1)));
        blocking.0 = blocking.0.min(again.0.0);
        awaited.0 = awaited.0.min(again.1.0);
    }
    slower(blocking, awaited)
}

fn listener(address: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn a_name_with_two_dead_addresses_of_three_connects_within_600_ms() {
    let name = "a_name_with_two_dead_addresses_of_three_connects_within_600_ms";
    let hosts = "10.9.0.7 many.test\n10.9.0.8 many.test\n127.0.0.1 many.test\n";
    on_a_machine(name, hosts, |backend| {
        let (_listener, port) = listener("127.0.0.1:0");
        // In the worst order; and in the system's.
        let ordered = Client::new(format!("many.test:{port}"))
            .resolver(|_| Ok(vec![[10, 9, 0, 7].into(), [10, 9, 0, 8].into(), [127, 0, 0, 1].into()]));
        let soon = Duration::from_millis(600);
        let (took, connected) = quickest(backend, &ordered, soon);
        assert_eq!(connected.unwrap(), format!("127.0.0.1:{port}"));
        assert!(took >= Duration::from_millis(500), "two were waited for: {took:?}");
        assert!(took < soon, "{took:?}");
        println!("figure: two dead of three, {backend}: {took:?}");
        let (took, connected) = quickest(backend, &Client::new(format!("many.test:{port}")), soon);
        assert_eq!(connected.unwrap(), format!("127.0.0.1:{port}"));
        assert!(took < soon, "{took:?}");
    });
}

#[test]
fn broken_ipv6_costs_250_ms() {
    on_a_machine("broken_ipv6_costs_250_ms", "", |backend| {
        let (_listener, port) = listener("127.0.0.1:0");
        let client = |v6: &str| {
            let v6 = v6.parse().unwrap();
            Client::new(format!("both.test:{port}")).resolver(move |_| Ok(vec![v6, [127, 0, 0, 1].into()]))
        };
        // It is there, and swallows everything.
        let (took, connected) = quickest(backend, &client("fd09::7"), Duration::from_millis(350));
        assert_eq!(connected.unwrap(), format!("127.0.0.1:{port}"));
        assert!((250..350).contains(&took.as_millis()), "{took:?}");
        println!("figure: broken IPv6, {backend}: {took:?}");
        // It is not there, and says so; or nobody listens.
        for v6 in ["2001:db8::1", "::1"] {
            let patient = client(v6).attempt_delay(Duration::from_secs(5));
            let (took, connected) = timed(backend, patient);
            assert_eq!(connected.unwrap(), format!("127.0.0.1:{port}"), "{v6}");
            assert!(took < Duration::from_secs(4), "{v6}: the next one begins at once: {took:?}");
        }
    });
}

#[test]
fn the_reasons_for_which_there_is_no_way_are_told_apart() {
    on_a_machine("the_reasons_for_which_there_is_no_way_are_told_apart", "", |backend| {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
        let kind = |address: &str, within: u64, told: &str| {
            let within = Duration::from_millis(within);
            let (_, connected) = timed(backend, Client::new(address).connect_within(within));
            let error = connected.unwrap_err();
            assert_eq!(error.to_string(), format!("connect to {address}: {told}"));
            error.io_kind()
        };
        assert_eq!(kind("127.0.0.1:1", 10_000, "connection refused"), Some(ConnectionRefused));
        assert_eq!(kind("10.8.0.1:1", 10_000, "host unreachable"), Some(HostUnreachable));
        assert_eq!(kind("192.0.2.1:1", 10_000, "network unreachable"), Some(NetworkUnreachable));
        assert_eq!(kind("10.9.0.7:1", 300, "timed out after 300ms"), None);
    });
}

#[test]
fn a_name_server_that_hangs_ends_at_the_deadline() {
    on_a_machine("a_name_server_that_hangs_ends_at_the_deadline", "127.0.0.1 known.test\n", |backend| {
        // It takes questions, and answers none.
        let silent = UdpSocket::bind("127.0.0.1:53").unwrap();
        silent.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let client = Client::new("unknown.test:80").connect_within(Duration::from_millis(300));
        let (took, connected) = quickest(backend, &client, Duration::from_millis(400));
        let error = connected.unwrap_err();
        assert_eq!(
            error.to_string(),
            "connect to unknown.test:80: timed out after 300ms, looking up the name"
        );
        assert!(error.is_timeout() && (300..400).contains(&took.as_millis()), "{took:?}");
        silent.recv(&mut [0; 512]).expect("it was asked");
        // Others are looked up meanwhile.
        let (_listener, port) = listener("127.0.0.1:0");
        let (took, connected) = timed(backend, Client::new(format!("known.test:{port}")));
        assert_eq!(connected.unwrap(), format!("127.0.0.1:{port}"));
        assert!(took < Duration::from_secs(10), "{took:?}");
    });
}

#[test]
fn as_many_connections_to_each_server_can_be_had_from_one_address_as_there_are_ports() {
    let name = "as_many_connections_to_each_server_can_be_had_from_one_address_as_there_are_ports";
    on_a_machine(name, "", |backend| {
        // So few ports that the second server's would be none if they were picked before it is known whom they are for.
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40009").unwrap();
        let listeners =
            ["127.0.0.1:5001", "127.0.0.1:5002", "127.0.0.1:5003"].map(|at| TcpListener::bind(at).unwrap());
        wharf::run_on(backend, async {
            let mut held = Vec::new();
            for listener in &listeners {
                let client = Client::new(listener.local_addr().unwrap()).bind("127.0.0.1");
                for _ in 0..5 {
                    held.push(client.open().await.unwrap());
                }
            }
            assert_eq!(held.len(), 15, "of ten ports");
            for conn in &mut held {
                conn.reset().await;
            }
        })
        .unwrap();
    });
}

#[test]
fn a_link_local_address_needs_a_scope_and_takes_the_name_of_a_device() {
    let name = "a_link_local_address_needs_a_scope_and_takes_the_name_of_a_device";
    on_a_machine(name, "", |backend| {
        let status =
            Command::new("ip").args(["-6", "addr", "add", "fe80::77/64", "dev", "lo", "nodad"]).status();
        assert!(status.unwrap().success());
        let (_listener, port) = listener("[fe80::77%1]:0");
        // The kernel puts the address to use in its own time.
        let reachable = || std::net::TcpStream::connect(format!("[fe80::77%1]:{port}")).is_ok();
        for _ in 0..250 {
            if reachable() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for scope in ["lo", "1"] {
            let client = Client::new(format!("[fe80::77%{scope}]:{port}")).bind("fe80::77%lo");
            let (_, connected) = timed(backend, client);
            assert_eq!(connected.unwrap(), format!("[fe80::77%1]:{port}"));
        }
        let unscoped = Client::new(format!("[fe80::77]:{port}"));
        for (_, connected) in [timed_blocking(&unscoped), timed_awaited(backend, unscoped)] {
            connected.expect_err("nobody knows on which device");
        }
    });
}
