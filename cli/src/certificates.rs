//! The certificates of a running server: those in force, and new ones in their place when their files change.
//!
//! What cannot be used changes nothing, and is told once for each change of a file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, SystemTime};

use wharf::tls::{Acceptor, Identity, ServerTls};

use crate::exit::{self, Failure, note};
use crate::tls::Tls;
use crate::values::{self, base64, colons};

/// What a server accepts TLS with; a clone is the same one.
#[derive(Clone)]
pub(crate) struct Certificates(Arc<Shared>);

struct Shared {
    acceptor: Acceptor,
    quiet: bool,
    state: Mutex<State>,
    watcher: OnceLock<Thread>,
}

struct State {
    made: Option<Made>,
    every: Option<Duration>,
    /// The files as they were when they were read last; none if they are to be read at the next look.
    seen: Vec<Look>,
}

/// A certificate of this process's own making. It stays while its names do: clients have been told.
#[derive(Clone)]
struct Made {
    names: Vec<String>,
    identity: Identity,
}

/// What there is to see of a file without reading it; behind links, for they are how a whole set of files is replaced at once.
#[derive(Clone, PartialEq, Eq)]
struct Look {
    path: PathBuf,
    /// Device, inode, size, and when it was changed; `None` if it is not there.
    found: Option<(u64, u64, u64, i64, i64)>,
}

/// A description that is read and checked, and not in force.
pub(crate) struct Checked {
    tls: ServerTls,
    made: Option<Made>,
    every: Option<Duration>,
}

/// When files have changed, they are looked at until they stay the same for so long: a certificate and its key are two files.
const SETTLED: Duration = Duration::from_millis(100);
/// So many times at most.
const SETTLED_LOOKS_MAX: usize = 20;

impl Certificates {
    /// What these options say, if they say anything.
    pub(crate) fn new(tls: &Tls, quiet: bool) -> Result<Option<Certificates>, Failure> {
        let Some(Checked { tls, made, every }) = check(tls, None)? else { return Ok(None) };
        let acceptor = Acceptor::new(tls).map_err(in_our_words)?;
        let state = Mutex::new(State { made, every, seen: Vec::new() });
        Ok(Some(Certificates(Arc::new(Shared { acceptor, quiet, state, watcher: OnceLock::new() }))))
    }

    pub(crate) fn acceptor(&self) -> &Acceptor {
        &self.0.acceptor
    }

    /// Reads what these options say and checks it; `None` if they are not about TLS.
    pub(crate) fn check(&self, tls: &Tls) -> Result<Option<Checked>, Failure> {
        let made = self.state().made.clone();
        let before = self.look();
        check(tls, made).inspect_err(|_| self.state().seen = before)
    }

    /// Puts in force what was checked.
    pub(crate) fn replace(&self, checked: Checked) -> Result<(), Failure> {
        self.0.acceptor.replace(checked.tls).map_err(in_our_words)?;
        let mut state = self.state();
        // They may have changed since they were read: the next look finds out.
        *state = State { made: checked.made, every: checked.every, seen: Vec::new() };
        drop(state);
        if let Some(watcher) = self.0.watcher.get() {
            watcher.unpark();
        }
        Ok(())
    }

    /// Reads the files again.
    pub(crate) fn reload(&self) {
        let before = self.look();
        let mut state = self.state();
        state.seen = before;
        match self.0.acceptor.reload() {
            Ok(true) => self.tell_of_change(),
            Ok(false) => self.say("TLS: read again, nothing has changed"),
            Err(error) => refuse(&error),
        }
    }

    /// Looks at the files from now on.
    pub(crate) fn watch(&self) -> Result<(), Failure> {
        let certificates = self.clone();
        let watch = move || certificates.watch_for_ever();
        let thread = thread::Builder::new().name(String::from("tls-watch")).spawn(watch);
        let thread = thread.map_err(|error| Failure::Io("start a thread", error))?;
        drop(self.0.watcher.set(thread.thread().clone()));
        Ok(())
    }

    fn watch_for_ever(&self) {
        loop {
            let every = self.state().every;
            match every {
                Some(every) => thread::park_timeout(every),
                None => thread::park(),
            }
            if self.state().every.is_some() {
                self.reload_if_changed();
            }
        }
    }

    fn reload_if_changed(&self) {
        if self.look() == self.state().seen {
            return;
        }
        let now = self.settled();
        let mut state = self.state();
        state.seen = now;
        match self.0.acceptor.reload() {
            Ok(true) => self.tell_of_change(),
            Ok(false) => {}
            Err(error) => refuse(&error),
        }
    }

    /// The files when nobody changes them.
    fn settled(&self) -> Vec<Look> {
        let mut now = self.look();
        for _ in 0..SETTLED_LOOKS_MAX {
            thread::sleep(SETTLED);
            let again = self.look();
            if again == now {
                break;
            }
            now = again;
        }
        now
    }

    fn look(&self) -> Vec<Look> {
        self.0.acceptor.files().iter().map(|path| Look::at(path)).collect()
    }

    /// What is in force, in lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        let state = self.state();
        let mut lines: Vec<_> =
            self.0.acceptor.identities().iter().map(|each| format!("TLS: {}", of(each))).collect();
        if let Some(Made { identity, .. }) = &state.made {
            lines.push(format!("TLS: self-signed, fingerprint {}", colons(&identity.fingerprint())));
            lines.push(format!("TLS: self-signed, pin {}", base64(&identity.public_key_hash())));
        }
        let files = self.0.acceptor.files().len();
        if let (Some(every), 1..) = (state.every, files) {
            lines.push(format!("TLS: looking at {files} files every {}", humantime::format_duration(every)));
        }
        lines
    }

    fn tell_of_change(&self) {
        self.say("TLS: the files have changed, new handshakes are made with what they are now");
        self.0.acceptor.identities().iter().for_each(|each| self.say(&format!("TLS: {}", of(each))));
    }

    fn say(&self, line: &str) {
        if !self.0.quiet {
            note(line);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Look {
    fn at(path: &Path) -> Look {
        let of = |it: fs::Metadata| (it.dev(), it.ino(), it.size(), it.mtime(), it.mtime_nsec());
        Look { path: path.into(), found: fs::metadata(path).ok().map(of) }
    }
}

fn check(tls: &Tls, made: Option<Made>) -> Result<Option<Checked>, Failure> {
    let made = match (tls.self_signed(), made) {
        (None, _) => None,
        (Some(names), Some(made)) if names == made.names => Some(made),
        (Some(names), _) => Some(Made {
            names: names.to_vec(),
            identity: Identity::self_signed(names).map_err(Failure::of_option("--tls-self-signed"))?,
        }),
    };
    let described = tls.describe(made.as_ref().map(|made| &made.identity))?;
    Ok(described.map(|described| Checked { tls: described, made, every: tls.watch() }))
}

fn refuse(error: &wharf::Error) {
    note(format_args!("error: TLS stays as it was, and the files have to be put right: {error}"));
}

/// An error of the library, by the names that options have here.
fn in_our_words(error: wharf::Error) -> Failure {
    let text = error.to_string();
    match text.strip_prefix("start: option `identity_for` ") {
        Some(problem) => Failure::Found(format!("--tls-name: {problem}")),
        None => Failure::Wharf(error),
    }
}

/// What an identity is for, and until when.
fn of(identity: &Identity) -> String {
    let names = match identity.names() {
        [] => String::from("no names"),
        names => names.join(", "),
    };
    let (from, until) = (identity.not_before(), identity.not_after());
    let now = SystemTime::now();
    let left = match until.duration_since(now) {
        Ok(_) if now < from => format!("not valid before {}", values::date(from)),
        Ok(left) => format!("{} days left", left.as_secs() / 86_400),
        Err(_) => String::from("EXPIRED, so clients refuse it"),
    };
    format!("{} until {}, {left}", exit::printable(&names), values::date(until))
}
