//! How the command ends: its exit codes, and the one line that says why.

use std::fmt;
use std::io::{self, Write};
use std::thread;

use signal_hook::consts::{SIGINT, SIGPIPE, SIGTERM};
use signal_hook::iterator::Signals;
use wharf::ErrorKind;

use crate::args::Args;

/// What `--help` says about exit codes.
pub(crate) const CODES: &str = "\
Exit codes:
    0  all went well; a server has ended on a signal
    1  it failed, and one line on standard error says why
    2  the command line makes no sense, and a line on standard error says why
  130  `connect` was interrupted (143: terminated)
  141  the reader of standard output went away, as for cat";

/// Why the command cannot go on.
#[derive(Debug)]
pub(crate) enum Failure {
    Wharf(wharf::Error),
    /// Input or output other than the network's: what was done, and how it failed.
    Io(&'static str, io::Error),
    /// The command worked, and what it found is bad.
    Found(String),
    /// Options make no sense, together or with what they are for.
    Senseless(String),
    /// Whoever read standard output has enough. Not worth a word.
    OutputUnwanted,
}

impl Failure {
    pub(crate) fn of_output(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputUnwanted,
            _ => Failure::Io("write standard output", error),
        }
    }

    /// What the library says of what `option` has named.
    pub(crate) fn of_option(option: &'static str) -> impl Fn(wharf::Error) -> Failure {
        move |error| Failure::Found(format!("{option}: {error}"))
    }

    /// What makes no sense in the command line, if that is why: an address that is none, an option that the library refuses.
    pub(crate) fn of_command_line(&self) -> Option<String> {
        match self {
            Failure::Senseless(problem) => Some(problem.clone()),
            Failure::Wharf(error)
                if error.kind() == ErrorKind::Caller
                    && io::Error::from(error.clone()).kind() == io::ErrorKind::InvalidInput =>
            {
                Some(by_option(error))
            }
            _ => None,
        }
    }

    /// Prints the line, if one is due, and returns the exit code.
    pub(crate) fn report(&self) -> u8 {
        if let Failure::OutputUnwanted = self {
            return of_signal(SIGPIPE);
        }
        if let Some(problem) = self.of_command_line() {
            Args::refuse(&problem);
        }
        note(self);
        1
    }

    /// Ends the process, from whichever thread.
    pub(crate) fn exit(&self) -> ! {
        at_once(self.report())
    }
}

/// Ends the process with this code while other threads go on with whatever they do: _exit(2), without what libraries have registered to be
/// called at the end (atexit(3)). aws-lc takes its randomness away there, and aborts a process that is amid a handshake.
///
/// What the standard output has buffered is lost: it is flushed where it is written.
pub(crate) fn at_once(code: u8) -> ! {
    signal_hook::low_level::exit(code.into())
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Wharf(error) => f.write_str(&by_option(error)),
            Failure::Io(doing, error) => write!(f, "{doing}: {}{}", plain(error), what_to_change(error)),
            Failure::Found(what) | Failure::Senseless(what) => f.write_str(what),
            Failure::OutputUnwanted => f.write_str("nobody reads the output"),
        }
    }
}

impl From<wharf::Error> for Failure {
    fn from(error: wharf::Error) -> Failure {
        Failure::Wharf(error)
    }
}

/// What the library says, with an option called as it is on the command line.
fn by_option(error: &wharf::Error) -> String {
    let text = error.to_string();
    let option = |rest: &str| -> Option<String> {
        let (name, problem) = rest.split_once('`')?;
        let name = name.replace('_', "-");
        Args::has_option(&name).then(|| format!("--{name}{problem}"))
    };
    text.strip_prefix("start: option `").and_then(option).unwrap_or(text)
}

/// Prints one line to standard error. If that is gone, there is nobody to tell.
pub(crate) fn note(line: impl fmt::Display) {
    print(format_args!("wharf: {line}\n"));
}

/// Prints text as it is to standard error, in one write, so that lines of two processes do not mix.
pub(crate) fn print(text: impl fmt::Display) {
    drop(io::stderr().write_all(text.to_string().as_bytes()));
}

/// The exit code for a command line that makes no sense.
pub(crate) const SENSELESS: u8 = 2;

/// The signals that end a process.
pub(crate) const ENDING: [i32; 2] = [SIGINT, SIGTERM];

/// Calls `each` for every one of `signals` from now on, on a thread of its own.
pub(crate) fn on_signals(signals: &[i32], mut each: impl FnMut(i32) + Send + 'static) -> Result<(), Failure> {
    let failed = |error| Failure::Io("watch for signals", error);
    let mut signals = Signals::new(signals).map_err(failed)?;
    let watch = move || signals.forever().for_each(&mut each);
    thread::Builder::new().name(String::from("signals")).spawn(watch).map_err(failed)?;
    Ok(())
}

/// The exit code that a shell shows for a process which `signal` ended.
pub(crate) fn of_signal(signal: i32) -> u8 {
    128 + signal as u8
}

/// The operating system's text without Rust's "(os error 28)" and with a small first letter, as Wharf's errors print.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// What the library adds as well.
fn what_to_change(error: &io::Error) -> &'static str {
    let is_full = error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error());
    if is_full { " (see `ulimit -n`)" } else { "" }
}

/// Text of somebody else without what would move a terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_reads_like_the_librarys_own() {
        assert_eq!(plain(&io::Error::from_raw_os_error(28)), "no space left on device");
    }

    #[test]
    fn without_descriptors_it_says_what_to_look_at() {
        let full = io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        let told = Failure::Io("watch for signals", full).to_string();
        assert_eq!(told, "watch for signals: too many open files (see `ulimit -n`)");
    }

    #[test]
    fn a_broken_pipe_ends_as_it_does_for_cat() {
        let failure = Failure::of_output(io::ErrorKind::BrokenPipe.into());
        assert_eq!(failure.report(), 141);
    }
}
