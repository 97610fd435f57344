//! `wharf cert`: certificates of a server or in a file, one fact on a line; and whether a client accepts them.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use wharf::tls::Info;
use wharf::{Client, TlsAlert, TlsFault};
use x509_parser::pem::Pem;

use crate::args::{Cert, Check};
use crate::client_tls::{agreed, connector};
use crate::exit::{self, Failure, note};
use crate::files;
use crate::x509::Facts;

pub(crate) fn run(args: &Cert) -> Result<(), Failure> {
    match args {
        Cert::Check(args) => check(args),
        Cert::Show(args) => show(&args.file),
    }
}

/// What a connect has brought.
struct Seen {
    info: Info,
    wants_certificate: bool,
}

fn check(args: &Check) -> Result<(), Failure> {
    args.trusting.have_name(&args.server);
    let accepted = look(args, args.trusting.describe()?);
    let refusal = match accepted {
        Ok(seen) => {
            tell(&seen)?;
            return print(&[(String::from("verdict"), String::from("accepted"))]);
        }
        Err(Failure::Wharf(error)) if error.tls_fault().is_some() => error,
        Err(failure) => return Err(failure),
    };
    // Whatever else is wrong comes out again, and then there is nothing to show.
    if let Ok(seen) = look(args, args.trusting.describe_trusting_nobody().danger_accept_any_certificate()) {
        tell(&seen)?;
        print(&[(String::from("verdict"), String::from("refused"))])?;
    }
    Err(refusal.into())
}

fn look(args: &Check, tls: wharf::tls::ClientTls) -> Result<Seen, Failure> {
    let client = Client::new(&args.server).connect_within(args.timeout).tls(&connector(tls)?);
    wharf::run(async {
        let mut conn = client.open().await?;
        let info = conn.tls().expect("it has begun with TLS");
        // By TLS 1.3 a server refuses who has no certificate when the client is done already.
        drop(conn.finish().await);
        let wants_certificate = loop {
            match conn.recv_chunk().within(SILENCE).await {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(error) => break error.tls_fault() == Some(TlsFault::Alert(CERTIFICATE_REQUIRED)),
            }
        };
        Ok(Seen { info, wants_certificate })
    })?
}

fn tell(seen: &Seen) -> Result<(), Failure> {
    let mut facts = vec![(String::from("agreed"), agreed(&seen.info))];
    let stapled =
        if seen.info.is_stapled() { "an OCSP response, which nobody has looked into" } else { "nothing" };
    facts.push((String::from("stapled"), String::from(stapled)));
    if seen.wants_certificate {
        facts.push((String::from("clients"), String::from("refused without a certificate of their own")));
    }
    let now = SystemTime::now();
    let chain: Vec<_> = seen.info.chain().map(Facts::of).collect();
    facts.extend(of_chain(&chain, now));
    print(&facts)?;
    warn(&chain, now);
    Ok(())
}

fn show(file: &Path) -> Result<(), Failure> {
    let found = |problem: &str| Failure::Found(format!("read {}: {problem}", file.display()));
    let bytes = files::read(file, FILE_MIB).map_err(|error| found(&exit::plain(&error)))?;
    let ders = match Facts::of(&bytes).is_readable() {
        true => vec![bytes],
        false => certificates(&bytes).map_err(|problem| found(&problem))?,
    };
    let chain: Vec<_> = ders.iter().map(|der| Facts::of(der)).collect();
    let now = SystemTime::now();
    print(&of_chain(&chain, now))?;
    warn(&chain, now);
    Ok(())
}

/// The certificates among whatever else is in a text.
fn certificates(text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut ders = Vec::new();
    for (number, section) in (1..).zip(Pem::iter_from_buffer(text)) {
        let section = section.map_err(|_| format!("section {number} of it is malformed"))?;
        if section.label == "CERTIFICATE" {
            if !Facts::of(&section.contents).is_readable() {
                return Err(format!("section {number} of it is a certificate that cannot be read"));
            }
            ders.push(section.contents);
        }
    }
    match ders.is_empty() {
        true => Err(String::from("there is no certificate in it, neither in PEM nor in DER")),
        false => Ok(ders),
    }
}

fn of_chain(chain: &[Facts<'_>], now: SystemTime) -> Vec<(String, String)> {
    let of_one = |(n, facts): (usize, &Facts<'_>)| -> Vec<_> {
        facts.lines(now).into_iter().map(|(name, fact)| (format!("chain.{n}.{name}"), fact)).collect()
    };
    chain.iter().enumerate().flat_map(of_one).collect()
}

fn warn(chain: &[Facts<'_>], now: SystemTime) {
    for warning in chain.iter().filter_map(|facts| facts.warning(now)) {
        note(format_args!("warning: {warning}"));
    }
}

fn print(facts: &[(String, String)]) -> Result<(), Failure> {
    let print = || -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        for (name, fact) in facts {
            writeln!(stdout, "{name:<22} {fact}")?;
        }
        stdout.flush()
    };
    print().map_err(Failure::of_output)
}

/// The largest file that is shown, in MiB.
const FILE_MIB: u64 = 64;
/// How long a server may take to refuse who has no certificate.
const SILENCE: Duration = Duration::from_millis(500);
/// RFC 8446, 6.2.
const CERTIFICATE_REQUIRED: TlsAlert = TlsAlert(116);
