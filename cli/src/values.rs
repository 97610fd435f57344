//! Values as they are written on the command line, in a file and to the terminal: durations, sizes, rates, names, hashes, dates.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE, HEXUPPER};
use wharf::{AcceptRate, Backend, Network, ReceiveRate};

/// A duration, or `none`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timeout(pub(crate) Option<Duration>);

impl FromStr for Timeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Timeout, String> {
        if text == "none" {
            return Ok(Timeout(None));
        }
        match duration_or_zero(text)? {
            Duration::ZERO => Err(String::from("must be longer than zero; `none` turns it off")),
            after => Ok(Timeout(Some(after))),
        }
    }
}

/// A number of bytes: `4096`, `64KiB`, `1MiB`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let factor: usize = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(format!("`{unit}` is not a unit; there are B, KiB, MiB and GiB")),
        };
        let number: usize = number.parse().map_err(|_| format!("`{number}` is not a number"))?;
        match number.checked_mul(factor) {
            None => Err(String::from("is more than any machine has")),
            Some(0) => Err(String::from("must be at least 1 byte")),
            Some(bytes) => Ok(Size(bytes)),
        }
    }
}

/// A size of at least so many KiB.
pub(crate) fn size_from<const KIB: usize>(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if size.0 < KIB << 10 {
        return Err(format!("must be at least {KIB}KiB"));
    }
    Ok(size)
}

/// How fast connections may come in: `N` or `N/BURST`.
pub(crate) fn accept_rate(text: &str) -> Result<AcceptRate, String> {
    let (per_second, burst) = pair(text);
    let number = |text: &str| match text.parse::<u32>() {
        Ok(0) => Err(String::from("must be at least 1")),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("`{text}` is not a number")),
    };
    let rate = AcceptRate::new(number(per_second)?);
    burst.map_or(Ok(rate), |burst| Ok(rate.burst(number(burst)?)))
}

/// The least rate of a message: `BYTES` in a second or `BYTES/GRACE`; or `none`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct MinRate(pub(crate) Option<ReceiveRate>);

impl FromStr for MinRate {
    type Err = String;

    fn from_str(text: &str) -> Result<MinRate, String> {
        if text == "none" {
            return Ok(MinRate(None));
        }
        let (bytes, grace) = pair(text);
        let bytes = u32::try_from(bytes.parse::<Size>()?.0).map_err(|_| "must be less than 4GiB")?;
        let rate = ReceiveRate::new(bytes);
        let Some(grace) = grace else { return Ok(MinRate(Some(rate))) };
        Ok(MinRate(Some(rate.grace(duration_or_zero(grace)?))))
    }
}

fn pair(text: &str) -> (&str, Option<&str>) {
    text.split_once('/').map_or((text, None), |(first, second)| (first, Some(second)))
}

/// A network, with what is wrong but not with the text itself, which stands beside it anyway.
pub(crate) fn network(text: &str) -> Result<Network, String> {
    text.parse().map_err(|error: wharf::Error| {
        let message = error.to_string();
        message.strip_prefix(&format!("parse {text}: ")).map_or(message.clone(), String::from)
    })
}

/// A mark of packets, also as `0x1f`.
pub(crate) fn mark(text: &str) -> Result<u32, String> {
    let mark = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    mark.map_err(|_| String::from("must be a number of 32 bits, such as 7 or 0x1f"))
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

impl Switch {
    pub(crate) fn is_on(self) -> bool {
        self == Switch::On
    }
}

/// A duration that is longer than zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err(String::from("must be longer than zero")),
        after => Ok(after),
    }
}

/// A duration: `500ms`, `30s`, `2m`, `1h30m`.
pub(crate) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    use humantime::DurationError as Error;
    humantime::parse_duration(text).map_err(|error| match error {
        Error::UnknownUnit { unit, .. } if !unit.is_empty() => {
            format!("`{unit}` is not a unit; there are ms, s, m, h and d, as in 500ms or 1h30m")
        }
        Error::UnknownUnit { .. } => String::from("the unit is missing; write 500ms, 30s or 2m"),
        Error::NumberOverflow => String::from("is longer than can be waited for"),
        _ => String::from("must be a number with its unit, such as 500ms, 30s or 2m"),
    })
}

/// What carries connections.
pub(crate) fn backend(text: &str) -> Result<Backend, String> {
    text.parse().map_err(|_: wharf::Error| String::from("must be auto, uring or readiness"))
}

/// A size of at most so many MiB.
pub(crate) fn size_to<const MIB: usize>(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if size.0 > MIB << 20 {
        return Err(format!("must be at most {MIB}MiB"));
    }
    Ok(size)
}

/// How often files are looked at, or `off`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watch(pub(crate) Option<Duration>);

impl FromStr for Watch {
    type Err = String;

    fn from_str(text: &str) -> Result<Watch, String> {
        if text == "off" {
            return Ok(Watch(None));
        }
        match duration_or_zero(text)? {
            every if every < WATCH_MIN => Err(String::from("must be at least 100ms; `off` turns it off")),
            every => Ok(Watch(Some(every))),
        }
    }
}

/// More often is work without use.
const WATCH_MIN: Duration = Duration::from_millis(100);

/// Names with commas between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names(pub(crate) Vec<String>);

impl FromStr for Names {
    type Err = String;

    fn from_str(text: &str) -> Result<Names, String> {
        let names: Vec<_> = text.split(',').map(|name| name.trim().to_owned()).collect();
        match names.iter().any(String::is_empty) {
            true => Err(String::from("must be names with commas between them")),
            false => Ok(Names(names)),
        }
    }
}

/// A certificate for those who ask for a name: `NAME=CERT:KEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedIdentity {
    pub(crate) name: String,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl FromStr for NamedIdentity {
    type Err = String;

    fn from_str(text: &str) -> Result<NamedIdentity, String> {
        let (name, files) = text.split_once('=').ok_or("must be NAME=CERT:KEY; there is no `=`")?;
        let (cert, key) = files.split_once(':').ok_or("must be NAME=CERT:KEY; there is no `:`")?;
        if key.contains(':') {
            return Err(String::from(
                "must be NAME=CERT:KEY; with more than one `:` it is unclear where CERT ends",
            ));
        }
        if [name, cert, key].iter().any(|part| part.is_empty()) {
            return Err(String::from("must be NAME=CERT:KEY; one of them is empty"));
        }
        Ok(NamedIdentity { name: name.into(), cert: cert.into(), key: key.into() })
    }
}

/// The name of an application protocol (ALPN).
pub(crate) fn protocol(text: &str) -> Result<String, String> {
    match text.len() {
        1..=255 => Ok(text.to_owned()),
        _ => Err(String::from("a protocol has a name of 1 to 255 bytes")),
    }
}

/// The SHA-256 of a public key, as 64 hexadecimal digits or as base64, also as curl writes it (`sha256//...`).
pub(crate) fn pin(text: &str) -> Result<[u8; 32], String> {
    let text = text.strip_prefix("sha256//").unwrap_or(text);
    let digits = text.replace(':', "");
    let bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).or_else(|_| BASE64.decode(text.as_bytes()));
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        String::from("must be the SHA-256 of a public key: 64 hexadecimal digits, or 44 characters of base64")
    })
}

/// A hash as pins are written.
pub(crate) fn base64(hash: &[u8]) -> String {
    BASE64.encode(hash)
}

/// A hash as fingerprints are written.
pub(crate) fn colons(hash: &[u8]) -> String {
    hash.iter().map(|byte| HEXUPPER.encode(&[*byte])).collect::<Vec<_>>().join(":")
}

/// A moment in UTC, by the second.
pub(crate) fn date(moment: SystemTime) -> String {
    // The formatter has four digits for the year, and no sign.
    let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    match moment {
        _ if moment < SystemTime::UNIX_EPOCH => String::from("before 1970"),
        _ if moment > latest => String::from("after 9999"),
        _ => humantime::format_rfc3339_seconds(moment).to_string(),
    }
}

/// What becomes of a connection that is one too many.
#[derive(Copy, Clone, Debug, ValueEnum)]
pub(crate) enum OverLimit {
    /// It waits in the kernel's backlog; if only its address has too many, it is reset.
    Queue,
    /// It is accepted and closed at once.
    Close,
    /// It is accepted and reset at once.
    Reset,
}

/// What becomes of a message that the queue has no room for.
#[derive(Copy, Clone, Debug, ValueEnum)]
pub(crate) enum WhenFull {
    /// It waits, and the client's next bytes behind it.
    Wait,
    /// It is refused, and a service in async style ends the connection; in event style it waits.
    Refuse,
    /// The connection is reset.
    Disconnect,
}

impl From<OverLimit> for wharf::OverLimit {
    fn from(policy: OverLimit) -> wharf::OverLimit {
        match policy {
            OverLimit::Queue => wharf::OverLimit::Queue,
            OverLimit::Close => wharf::OverLimit::Close,
            OverLimit::Reset => wharf::OverLimit::Reset,
        }
    }
}

impl From<WhenFull> for wharf::WhenFull {
    fn from(when_full: WhenFull) -> wharf::WhenFull {
        match when_full {
            WhenFull::Wait => wharf::WhenFull::Wait,
            WhenFull::Refuse => wharf::WhenFull::Refuse,
            WhenFull::Disconnect => wharf::WhenFull::Disconnect,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_duration_or_none() {
        assert_eq!("none".parse(), Ok(Timeout(None)));
        assert_eq!("500ms".parse(), Ok(Timeout(Some(Duration::from_millis(500)))));
        assert_eq!("2m".parse(), Ok(Timeout(Some(Duration::from_secs(120)))));
        for wrong in ["", "0s", "3", "-1s", "soon"] {
            assert!(wrong.parse::<Timeout>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_size_is_a_number_of_bytes_with_or_without_a_unit() {
        for (text, bytes) in [("1", 1), ("4096B", 4096), ("64KiB", 64 << 10), ("6GiB", 6 << 30)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for (text, problem) in [
            ("", "`` is not a number"),
            ("KiB", "`` is not a number"),
            ("64kb", "`kb` is not a unit"),
            ("1.5MiB", "`.5MiB` is not a unit"),
            ("-1", "`-1` is not a unit"),
            ("0KiB", "must be at least 1 byte"),
            ("99999999999999999999", "`99999999999999999999` is not a number"),
            ("17179869184GiB", "is more than any machine has"),
        ] {
            let error = text.parse::<Size>().expect_err(text);
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn a_rate_may_have_a_burst_and_a_least_rate_a_grace() {
        assert_eq!(accept_rate("200"), Ok(AcceptRate::new(200)));
        assert_eq!(accept_rate("200/50"), Ok(AcceptRate::new(200).burst(50)));
        for wrong in ["", "0", "1/0", "1/", "/1", "1/2/3", "fast"] {
            assert!(accept_rate(wrong).is_err(), "{wrong}");
        }
        assert_eq!("none".parse(), Ok(MinRate(None)));
        assert_eq!("1KiB".parse(), Ok(MinRate(Some(ReceiveRate::new(1024)))));
        let strict = ReceiveRate::new(100).grace(Duration::from_secs(5));
        assert_eq!("100/5s".parse(), Ok(MinRate(Some(strict))));
        for wrong in ["", "0", "1/", "1/5", "4GiB", "slow"] {
            assert!(wrong.parse::<MinRate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_network_says_what_is_wrong_and_a_mark_may_be_hexadecimal() {
        assert!(network("10.0.0.0/8").is_ok());
        let error = network("10.1.0.0/8").expect_err("bits behind the prefix");
        assert_eq!(error, "the address has bits behind the prefix; write 10.0.0.0/8");
        assert_eq!((mark("7"), mark("0x1F")), (Ok(7), Ok(31)));
        assert!(mark("4294967296").is_err() && mark("0x").is_err() && mark("x").is_err());
    }

    #[test]
    fn a_watch_is_a_duration_or_off() {
        assert_eq!("off".parse(), Ok(Watch(None)));
        assert_eq!("5s".parse(), Ok(Watch(Some(Duration::from_secs(5)))));
        for wrong in ["", "0s", "5", "1ms", "none"] {
            assert!(wrong.parse::<Watch>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_has_a_certificate_and_a_key() {
        let named = "*.example.com=/a/c.pem:/a/k.pem".parse::<NamedIdentity>().expect("it makes sense");
        assert_eq!(
            (named.name.as_str(), named.cert, named.key),
            ("*.example.com", "/a/c.pem".into(), "/a/k.pem".into())
        );
        for wrong in ["", "a", "a=b", "a=b:", "a=:c", "=b:c", "a=b:c:d"] {
            let error = wrong.parse::<NamedIdentity>().expect_err(wrong);
            assert!(error.starts_with("must be NAME=CERT:KEY; "), "{wrong}: {error}");
        }
        assert_eq!("a, b".parse(), Ok(Names(vec!["a".into(), "b".into()])));
        assert!("a,,b".parse::<Names>().is_err() && "".parse::<Names>().is_err());
    }

    #[test]
    fn a_pin_is_read_as_it_is_written() {
        let hash = std::array::from_fn(|n| n as u8 * 7);
        for text in [
            base64(&hash),
            format!("sha256//{}", base64(&hash)),
            colons(&hash),
            colons(&hash).replace(':', "").to_lowercase(),
        ] {
            assert_eq!(pin(&text), Ok(hash), "{text}");
        }
        for wrong in ["", "00", &base64(&hash[1..]), &format!("{}=", base64(&hash)), "no such pin"] {
            assert!(pin(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_date_is_never_too_early_or_too_late() {
        let at = |seconds| date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(
            (at(0).as_str(), at(253_402_300_799).as_str()),
            ("1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z")
        );
        assert_eq!(at(253_402_300_800), "after 9999");
        assert_eq!(date(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "before 1970");
    }
}
