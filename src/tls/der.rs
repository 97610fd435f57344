//! What is read from a certificate besides what verifies it: names, dates, issuer. Trusts no byte of it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Its subject, in words; empty if it has none.
    pub(super) subject: String,
    pub(super) issuer: String,
    /// In seconds since 1970.
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    /// The DNS names and addresses that it is for.
    pub(super) names: Vec<String>,
}

/// Reads a certificate in DER; `None` if it is none.
pub(super) fn facts(der: &[u8]) -> Option<Facts> {
    let mut certificate = Reader(Reader(der).expect(SEQUENCE)?);
    let mut body = Reader(certificate.expect(SEQUENCE)?);
    body.skip(VERSION);
    body.expect(INTEGER)?;
    body.expect(SEQUENCE)?; // the signature's algorithm
    let issuer = words(body.expect(SEQUENCE)?)?;
    let mut validity = Reader(body.expect(SEQUENCE)?);
    let (not_before, not_after) = (validity.time()?, validity.time()?);
    let subject = words(body.expect(SEQUENCE)?)?;
    body.expect(SEQUENCE)?; // the public key
    let mut facts = Facts { subject, issuer, not_before, not_after, names: Vec::new() };
    while let Some((tag, content)) = body.next() {
        if tag == EXTENSIONS {
            facts.names = alternative_names(content)?;
        }
    }
    Some(facts)
}

/// Whether `der` is an OCSP response that says something; if not, what is wrong (RFC 6960, 4.2.1).
pub(super) fn check_ocsp_response(der: &[u8]) -> Result<(), String> {
    let malformed = || String::from("this is not an OCSP response in DER");
    let mut whole = Reader(der);
    let mut response = Reader(whole.expect(SEQUENCE).ok_or_else(malformed)?);
    if !whole.0.is_empty() {
        return Err(malformed());
    }
    match response.expect(ENUMERATED).ok_or_else(malformed)? {
        [0] if response.0.is_empty() => Err(malformed()),
        [0] => Ok(()),
        [status] => Err(format!("the OCSP responder did not answer, it said {}", ocsp_status(*status))),
        _ => Err(malformed()),
    }
}

/// `seconds` after 1970 as `2026-11-21 19:00:00 UTC`.
pub(super) fn date(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days: years begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// `seconds` after 1970 as a time of the system.
pub(super) fn system_time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

/// `text` of a peer's, so that it can stand in a log: short, on one line, with nothing that moves a cursor.
pub(super) fn printable(text: &str) -> String {
    let mut letters = text.chars();
    let mut kept: String = letters
        .by_ref()
        .take(TEXT_MAX)
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect();
    if letters.next().is_some() {
        kept.push('…');
    }
    kept
}

/// DER's elements, one after another.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next element: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first >= 0x80 {
            let bytes = usize::from(first & 0x7F);
            if bytes == 0 || bytes > 4 || bytes > rest.len() {
                return None;
            }
            let (digits, behind) = rest.split_at(bytes);
            length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
            rest = behind;
        }
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }

    /// Skips the next element if it has this tag.
    fn skip(&mut self, tag: u8) {
        if self.0.first() == Some(&tag) {
            self.next();
        }
    }

    /// A time, in seconds since 1970 (RFC 5280, 4.1.2.5).
    fn time(&mut self) -> Option<i64> {
        let (tag, text) = self.next()?;
        let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (year, rest) = match tag {
            UTC_TIME if text.len() == 12 => {
                let year: i64 = text[..2].parse().ok()?;
                (year + if year < 50 { 2000 } else { 1900 }, &text[2..])
            }
            GENERALIZED_TIME if text.len() == 14 => (text[..4].parse().ok()?, &text[4..]),
            _ => return None,
        };
        let part = |at: usize| rest[at..at + 2].parse::<i64>().ok();
        let (month, day) = (part(0)?, part(2)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        Some(days(year, month, day) * DAY + part(4)? * 3600 + part(6)? * 60 + part(8)?)
    }
}

/// The days from 1970 to a date; `date` has the source.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    year.div_euclid(400) * 146_097 + day_of_era - 719_468
}

/// A distinguished name in words: `CN=example.com, O=Example`.
pub(super) fn words(name: &[u8]) -> Option<String> {
    let mut name = Reader(name);
    let mut words = Vec::new();
    while !name.0.is_empty() {
        let mut set = Reader(name.expect(SET)?);
        while !set.0.is_empty() {
            let mut attribute = Reader(set.expect(SEQUENCE)?);
            let kind = match attribute.expect(OBJECT_IDENTIFIER)? {
                [0x55, 4, 3] => "CN",
                [0x55, 4, 6] => "C",
                [0x55, 4, 10] => "O",
                [0x55, 4, 11] => "OU",
                _ => continue,
            };
            let (_, value) = attribute.next()?;
            words.push(format!("{kind}={}", printable(&String::from_utf8_lossy(value))));
        }
    }
    Some(words.join(", "))
}

/// The DNS names and addresses among a certificate's extensions (RFC 5280, 4.2.1.6).
fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut extensions = Reader(Reader(extensions).expect(SEQUENCE)?);
    while !extensions.0.is_empty() {
        let mut extension = Reader(extensions.expect(SEQUENCE)?);
        let kind = extension.expect(OBJECT_IDENTIFIER)?;
        extension.skip(BOOLEAN); // critical
        let value = extension.expect(OCTET_STRING)?;
        if kind == SUBJECT_ALTERNATIVE_NAME {
            return names(Reader(value).expect(SEQUENCE)?);
        }
    }
    Some(Vec::new())
}

fn names(list: &[u8]) -> Option<Vec<String>> {
    let mut list = Reader(list);
    let mut names = Vec::new();
    while !list.0.is_empty() {
        match list.next()? {
            (DNS_NAME, name) => names.push(printable(&String::from_utf8_lossy(name))),
            (IP_ADDRESS, address) => {
                if let Ok(v4) = <[u8; 4]>::try_from(address) {
                    names.push(Ipv4Addr::from(v4).to_string());
                } else if let Ok(v6) = <[u8; 16]>::try_from(address) {
                    names.push(Ipv6Addr::from(v6).to_string());
                }
            }
            _ => {}
        }
    }
    Some(names)
}

fn ocsp_status(status: u8) -> &'static str {
    match status {
        1 => "malformedRequest",
        2 => "internalError",
        3 => "tryLater",
        5 => "sigRequired",
        6 => "unauthorized",
        _ => "nothing that is known",
    }
}

/// Seconds.
const DAY: i64 = 86_400;
/// How many letters of a peer's text are shown.
const TEXT_MAX: usize = 80;

// Tags (X.690; those of the context: RFC 5280).
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const ENUMERATED: u8 = 0x0A;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
const VERSION: u8 = 0xA0;
const EXTENSIONS: u8 = 0xA3;

/// 2.5.29.17
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1D, 0x11];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tls::testing::{leaf, self_signed};

    #[test]
    fn a_certificate_is_read() {
        let mut params = leaf(&["example.com", "*.example.net", "192.0.2.7", "2001:db8::7"]);
        params.not_before = rcgen::date_time_ymd(2024, 2, 29);
        params.not_after = rcgen::date_time_ymd(2051, 3, 1);
        let facts = facts(&self_signed(params).chain_der()[0]).expect("a certificate");
        assert_eq!(facts.names, ["example.com", "*.example.net", "192.0.2.7", "2001:db8::7"]);
        assert_eq!(facts.subject, "CN=example.com");
        assert_eq!(facts.issuer, facts.subject);
        assert_eq!(date(facts.not_before), "2024-02-29 00:00:00 UTC");
        assert_eq!(date(facts.not_after), "2051-03-01 00:00:00 UTC");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (-1, "1969-12-31 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_795_287_600, "2026-11-21 19:00:00 UTC"),
            (4_107_542_399, "2100-02-28 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(date(seconds), text);
        }
        assert_eq!(system_time(-1), UNIX_EPOCH - Duration::from_secs(1));
    }

    #[test]
    fn a_peers_text_stays_on_its_line() {
        assert_eq!(printable("a\u{1b}[2J\nb\u{9b}"), "a?[2J?b?");
        assert_eq!(printable(&"x".repeat(81)), format!("{}…", "x".repeat(80)));
    }

    #[test]
    fn an_ocsp_response_has_to_say_something() {
        assert_eq!(check_ocsp_response(&[0x30, 5, 0x0A, 1, 0, 0xA0, 0]), Ok(()));
        for (der, problem) in [
            (&[][..], "this is not an OCSP response in DER"),
            (b"-----BEGIN", "this is not an OCSP response in DER"),
            (&[0x30, 3, 0x0A, 1, 0], "this is not an OCSP response in DER"),
            (&[0x30, 3, 0x0A, 1, 0, 0], "this is not an OCSP response in DER"),
            (&[0x30, 3, 0x0A, 1, 3], "the OCSP responder did not answer, it said tryLater"),
        ] {
            assert_eq!(check_ocsp_response(der), Err(problem.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn a_date_from_year_1_to_9999_is_the_days_it_was_made_of(day in -719_162_i64..2_932_897) {
            let text = date(day * DAY);
            let part = |range: std::ops::Range<usize>| text[range].parse::<i64>().expect("digits");
            prop_assert_eq!(days(part(0..4), part(5..7), part(8..10)), day);
        }

        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..200), flip in 0..400_usize, to: u8) {
            facts(&bytes);
            let mut real = REAL.with(Clone::clone);
            let at = flip % real.len();
            real[at] = to;
            facts(&real);
            real.truncate(at);
            facts(&real);
            let _ = check_ocsp_response(&bytes);
        }
    }

    thread_local! {
        static REAL: Vec<u8> = self_signed(leaf(&["example.com"])).chain_der()[0].clone();
    }
}
