//! Keys of sessions, written to a file for those who look at captured packets ([`KeyLogFile`]).

use std::fmt;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustls::KeyLog;

use super::pem::Source;
use crate::error::{Error, Operation, Result};

/// A file of keys in the format of NSS.
pub(super) struct KeyLogFile(Mutex<Log>);

struct Log {
    file: File,
    /// Whether the last line could not be written, or only in part: the disk was full, say.
    is_torn: bool,
}

impl KeyLogFile {
    /// Opens the file to append to it; makes it for its owner alone if there is none.
    pub(super) fn open(path: &Path) -> Result<KeyLogFile> {
        let failed = |error| Error::os(Operation::Load, error).at(path.display());
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let mode = metadata.permissions().mode() & 0o777;
        // Whoever made the file in a directory of all, or a pipe in its place, reads it however private it is.
        let owner = metadata.uid();
        let is_ours = [0, rustix::process::geteuid().as_raw()].contains(&owner);
        if (metadata.is_file() || metadata.file_type().is_fifo()) && !is_ours {
            let problem = format!("is to hold keys, and belongs to somebody else (user {owner})");
            return Err(Source::File(path.into()).error(problem));
        }
        if metadata.is_file() && mode & 0o077 != 0 {
            let problem =
                format!("is to hold keys, and others than its owner have access to it (mode {mode:o})");
            return Err(Source::File(path.into()).error(problem));
        }
        Ok(KeyLogFile(Mutex::new(Log { file, is_torn: false })))
    }
}

impl KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What is left of a torn line is not to spoil this one; an empty line says nothing.
        let mut line = String::from(if log.is_torn { "\n" } else { "" });
        line.push_str(label);
        for bytes in [client_random, secret] {
            line.push(' ');
            bytes.iter().for_each(|byte| _ = write!(line, "{byte:02x}"));
        }
        line.push('\n');
        // One write for the line, so that those of other processes do not come between.
        let written = log.file.write_all(line.as_bytes());
        let was_torn = std::mem::replace(&mut log.is_torn, written.is_err());
        if let (Err(error), false) = (written, was_torn) {
            told(&error);
        }
    }
}

/// Says that keys are missing from now on: once, and not for every handshake.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "there is nobody to tell"))]
fn told(error: &std::io::Error) {
    event!(warn, error = crate::error::plain(error), "keys cannot be written to the key log");
}

impl fmt::Debug for KeyLogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyLogFile")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::tls::testing::Directory;

    #[test]
    fn lines_are_appended_to_a_file_that_is_its_owners() {
        let directory = Directory::new();
        let path = directory.path("keys.log");
        for _ in 0..2 {
            KeyLogFile::open(&path).expect("it can be made").log("LABEL", &[1, 0xAB], &[2]);
        }
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "LABEL 01ab 02\nLABEL 01ab 02\n");
        let permissions = fs::metadata(&path).expect("it is there").permissions();
        assert_eq!(permissions.mode() & 0o777, 0o600);
    }

    #[test]
    fn a_line_that_could_not_be_written_does_not_spoil_the_next() {
        let directory = Directory::new();
        let path = directory.path("keys.log");
        let log = KeyLogFile::open(&path).expect("it can be made");
        let file =
            std::mem::replace(&mut log.0.lock().unwrap().file, File::open("/dev/null").expect("it is there"));
        log.log("LOST", &[1], &[2]); // it is open for reading only
        assert!(log.0.lock().unwrap().is_torn);
        (&file).write_all(b"TO").expect("there is room");
        log.0.lock().unwrap().file = file;
        log.log("LABEL", &[1], &[2]);
        log.log("LABEL", &[3], &[4]);
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "TO\nLABEL 01 02\nLABEL 03 04\n");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let directory = Directory::new();
        let path = directory.write("keys.log", "");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
        let error = KeyLogFile::open(&path).expect_err("others may read it");
        let problem = "is to hold keys, and others than its owner have access to it (mode 644)";
        assert_eq!(error.to_string(), format!("load {}: {problem}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        // Only root can give a file away.
        if std::os::unix::fs::chown(&path, Some(65_534), None).is_ok() && rustix::process::geteuid().is_root()
        {
            let error = KeyLogFile::open(&path).expect_err("it is somebody else's");
            let problem = "is to hold keys, and belongs to somebody else (user 65534)";
            assert_eq!(error.to_string(), format!("load {}: {problem}", path.display()));
        }
        let error = KeyLogFile::open(Path::new("/nowhere/keys.log")).expect_err("there is no such directory");
        assert_eq!(error.to_string(), "load /nowhere/keys.log: no such file or directory");
    }
}
