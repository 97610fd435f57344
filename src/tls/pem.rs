//! Reading PEM (RFC 7468), from files or memory, and saying exactly what is wrong with it.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{PemObject, SectionKind};

use crate::error::{Cause, Error, Operation, Result};

/// Where certificates or keys are from.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Source {
    File(PathBuf),
    /// Given by the program; this is what errors call it.
    Given(&'static str),
    /// The roots of the operating system.
    Platform,
}

/// One block of a PEM text, with its label as the kind of thing.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) label: String,
    /// The line of its beginning, from 1.
    pub(super) line: usize,
    pub(super) der: Vec<u8>,
    /// Whether it is encrypted in the way that was before PKCS#8 (RFC 1421).
    pub(super) is_encrypted: bool,
}

impl Source {
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Source::File(path) => Some(path),
            Source::Given(_) | Source::Platform => None,
        }
    }

    /// An error about what is here.
    pub(super) fn error(&self, problem: impl Into<String>) -> Error {
        Error::new(Operation::Load, Cause::Content { problem: problem.into() }).at(self)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Given(what) => f.write_str(what),
            Source::Platform => f.write_str("the roots of the system"),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The bytes of a file, if they are no more than [`FILE_MAX`]: a device without an end is read no further, nor what grows in its place.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes));
    match read.map_err(|error| Error::os(Operation::Load, error).at(path.display()))? {
        length if length as u64 > FILE_MAX => {
            Err(Source::File(path.into()).error(format!("is larger than {} MiB", FILE_MAX >> 20)))
        }
        _ => Ok(bytes),
    }
}

/// The largest file that is read. Large lists of revoked certificates have some tens of megabytes.
const FILE_MAX: u64 = 64 << 20;

/// The blocks of `text`, which is from `source`.
pub(super) fn sections(source: &Source, text: &[u8]) -> Result<Vec<Section>> {
    if text.is_empty() {
        return Err(source.error("is empty"));
    }
    let sections = scan(text).map_err(|problem| source.error(problem))?;
    match sections.is_empty() {
        false => Ok(sections),
        true if is_der(text) => Err(source.error("is in DER, and has to be in PEM")),
        true => Err(source.error("is not PEM: there is no line with `-----BEGIN`")),
    }
}

/// Whether `bytes` begin as DER does: a sequence.
pub(super) fn is_der(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x30)
}

/// What there is, for an error that says what there is not: `found: CERTIFICATE, PUBLIC KEY`.
pub(super) fn found(sections: &[Section]) -> String {
    let mut labels: Vec<&str> = sections.iter().map(|section| section.label.as_str()).collect();
    labels.dedup();
    labels.truncate(LABELS_SHOWN);
    format!("found: {}", labels.join(", "))
}

fn scan(text: &[u8]) -> Result<Vec<Section>, String> {
    let mut sections = Vec::new();
    // Of the block that has begun: its label, its line, and where it lies.
    let mut begun: Option<(String, usize, usize)> = None;
    let (mut at, mut encrypted) = (0, false);
    for (line, raw) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let start = at;
        at += raw.len() + 1;
        let content = raw.trim_ascii_end();
        let (content, start) = match content.strip_prefix(BYTE_ORDER_MARK) {
            Some(rest) if line == 1 => (rest, start + BYTE_ORDER_MARK.len()),
            _ => (content, start),
        };
        if let Some(rest) = content.strip_prefix(b"-----BEGIN ") {
            if let Some((label, begin, _)) = begun {
                return Err(format!(
                    "line {begin}: `{label}` has no end before the next block, on line {line}"
                ));
            }
            let label = rest.strip_suffix(b"-----").and_then(|label| std::str::from_utf8(label).ok());
            let Some(label) = label else {
                return Err(format!("line {line}: `-----BEGIN` without its label and `-----` at the end"));
            };
            begun = Some((label.to_owned(), line, start));
            encrypted = false;
        } else if let Some(rest) = content.strip_prefix(b"-----END ") {
            let Some((label, begin, from)) = begun.take() else {
                return Err(format!("line {line}: `-----END` without `-----BEGIN`"));
            };
            if rest.strip_suffix(b"-----") != Some(label.as_bytes()) {
                return Err(format!(
                    "line {line}: this is not the end of `{label}`, which began on line {begin}"
                ));
            }
            let block = text.get(from..start + content.len()).unwrap_or_default();
            let der = if encrypted { Vec::new() } else { decode(block, begin)? };
            sections.push(Section { label, line: begin, der, is_encrypted: encrypted });
        } else if begun.is_some() {
            if content.starts_with(b"Proc-Type:") && content.ends_with(b"ENCRYPTED") {
                encrypted = true;
            } else if !encrypted && !content.iter().all(|byte| is_base64(*byte)) {
                return Err(format!("line {line}: this is not base64"));
            }
        }
    }
    match begun {
        Some((label, line, _)) => Err(format!("line {line}: `{label}` has no end, the text is cut off")),
        None => Ok(sections),
    }
}

/// The content of one block; nothing of a kind that nobody asks for.
fn decode(block: &[u8], line: usize) -> Result<Vec<u8>, String> {
    match <(SectionKind, Vec<u8>)>::pem_slice_iter(block).next() {
        Some(Ok((_, der))) if der.is_empty() => Err(format!("line {line}: there is nothing in this block")),
        Some(Ok((_, der))) => Ok(der),
        Some(Err(_)) => Err(format!("line {line}: the base64 of this block is cut short or too long")),
        None => Ok(Vec::new()),
    }
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b' ' | b'\t')
}

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// How many kinds of blocks an error lists.
const LABELS_SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn problem(text: &str) -> String {
        sections(&Source::Given("x"), text.as_bytes()).expect_err("it is not in order").to_string()
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, expected) in [
            ("", "load x: is empty"),
            ("hello", "load x: is not PEM: there is no line with `-----BEGIN`"),
            ("\u{30}\u{3}", "load x: is in DER, and has to be in PEM"),
            ("\n-----BEGIN A", "load x: line 2: `-----BEGIN` without its label and `-----` at the end"),
            ("-----BEGIN A-----\nAA", "load x: line 1: `A` has no end, the text is cut off"),
            ("\n-----END A-----", "load x: line 2: `-----END` without `-----BEGIN`"),
            (
                "-----BEGIN A-----\nAAAA\n-----END B-----",
                "load x: line 3: this is not the end of `A`, which began on line 1",
            ),
            (
                "-----BEGIN A-----\nAAAA\n-----BEGIN A-----\n",
                "load x: line 1: `A` has no end before the next block, on line 3",
            ),
            ("-----BEGIN CERTIFICATE-----\nAAAA\nA<>A\n", "load x: line 3: this is not base64"),
            (
                "\n-----BEGIN CERTIFICATE-----\nAAAAA\n-----END CERTIFICATE-----\n",
                "load x: line 2: the base64 of this block is cut short or too long",
            ),
            (
                "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
                "load x: line 1: there is nothing in this block",
            ),
        ] {
            assert_eq!(problem(text), expected, "{text:?}");
        }
    }

    #[test]
    fn text_around_the_blocks_and_foreign_line_ends_do_no_harm() {
        let text = "\u{feff}-----BEGIN CERTIFICATE-----\r\nAAAA\r\n-----END CERTIFICATE-----\r\n\
                    subject=/CN=x\n-----BEGIN DH PARAMETERS-----\nAA==\n-----END DH PARAMETERS-----";
        let sections = sections(&Source::Given("x"), text.as_bytes()).expect("it is in order");
        let told: Vec<_> =
            sections.iter().map(|each| (each.label.as_str(), each.line, each.der.len())).collect();
        assert_eq!(told, [("CERTIFICATE", 1, 3), ("DH PARAMETERS", 5, 0)]);
        assert_eq!(found(&sections), "found: CERTIFICATE, DH PARAMETERS");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read_file(Path::new("/nowhere/chain.pem")).expect_err("there is none");
        assert_eq!(error.to_string(), "load /nowhere/chain.pem: no such file or directory");
        let error = read_file(Path::new("/")).expect_err("it is no file");
        assert_eq!(error.to_string(), "load /: is a directory");
    }

    #[test]
    fn a_file_without_an_end_is_read_no_further_than_the_bound() {
        let error = read_file(Path::new("/dev/zero")).expect_err("it has no end");
        assert_eq!(error.to_string(), "load /dev/zero: is larger than 64 MiB");
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(pieces in proptest::collection::vec(
            prop_oneof![
                Just("-----BEGIN CERTIFICATE-----"), Just("-----END CERTIFICATE-----"), Just("\n"), Just("AAAA"),
                Just("\r"), Just("-----BEGIN "), Just("Proc-Type: 4,ENCRYPTED"), Just("\u{feff}"), Just("="),
            ],
            0..30,
        )) {
            let _ = sections(&Source::Given("x"), pieces.concat().as_bytes());
        }
    }
}
