//! What a running server does on signals: drain, reload, tell how it is, suspend.

use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGUSR1, SIGUSR2};
use wharf::systemd::State;
use wharf::{Access, Deadlines, Limits, Phase, Snapshot, blocking};

use crate::certificates::Certificates;
use crate::exit::{self, Failure, note};
use crate::options::Admission;
use crate::serve;
use crate::settings::{CommandLine, Settings};

/// What an operator needs of a running server, whatever its style.
pub(crate) trait Running: Send + 'static {
    fn phase(&self) -> Phase;
    fn snapshot(&self) -> Snapshot;
    fn limits(&self) -> Limits;
    fn set_limits(&self, limits: Limits) -> wharf::Result<()>;
    fn deadlines(&self) -> Deadlines;
    fn set_deadlines(&self, deadlines: Deadlines) -> wharf::Result<()>;
    fn set_access(&self, access: Access);
    fn suspend(&self);
    fn resume(&self) -> wharf::Result<()>;
    fn drain(&self, within: Duration);
    /// Why it holds as many connections as it does.
    fn reason(&self, admission: &Admission) -> String;
}

macro_rules! running {
    ($handle:ty, $reason:path) => {
        impl Running for $handle {
            fn phase(&self) -> Phase {
                self.phase()
            }

            fn snapshot(&self) -> Snapshot {
                self.snapshot()
            }

            fn limits(&self) -> Limits {
                self.limits()
            }

            fn set_limits(&self, limits: Limits) -> wharf::Result<()> {
                self.set_limits(limits)
            }

            fn deadlines(&self) -> Deadlines {
                self.deadlines()
            }

            fn set_deadlines(&self, deadlines: Deadlines) -> wharf::Result<()> {
                self.set_deadlines(deadlines)
            }

            fn set_access(&self, access: Access) {
                self.set_access(access);
            }

            fn suspend(&self) {
                self.suspend();
            }

            fn resume(&self) -> wharf::Result<()> {
                self.resume()
            }

            fn drain(&self, within: Duration) {
                self.drain(within);
            }

            fn reason(&self, admission: &Admission) -> String {
                $reason(self, admission)
            }
        }
    };
}

running!(wharf::ServerHandle, serve::reason);
running!(blocking::ServerHandle, crate::serve_blocking::reason);

/// Obeys signals from now on.
pub(crate) fn obey_signals(
    line: CommandLine,
    settings: Settings,
    server: impl Running,
    certificates: Option<Certificates>,
) -> Result<(), Failure> {
    let [interrupt, terminate] = exit::ENDING;
    let mut operator = Operator {
        quiet: settings.serve.quiet,
        drain: settings.serve.options.times.drain,
        draining: false,
        line,
        started: settings,
        server,
        certificates,
    };
    exit::on_signals(&[interrupt, terminate, SIGHUP, SIGUSR1, SIGUSR2], move |signal| operator.obey(signal))
}

/// Tells the service manager, if there is one. What it is not told of a reload keeps nobody from being served.
fn tell_manager(state: State<'_>) {
    drop(wharf::systemd::notify(&[state]));
}

struct Operator<S> {
    line: CommandLine,
    /// What the server was started with.
    started: Settings,
    quiet: bool,
    drain: Duration,
    draining: bool,
    server: S,
    certificates: Option<Certificates>,
}

impl<S: Running> Operator<S> {
    fn obey(&mut self, signal: i32) {
        match signal {
            SIGHUP => self.reload(),
            SIGUSR1 => exit::print(self.server.snapshot()),
            SIGUSR2 => self.suspend_or_resume(),
            _ => self.end(),
        }
    }

    fn end(&mut self) {
        let within = if self.draining { Duration::ZERO } else { self.drain };
        if self.draining {
            self.say("stopping at once");
        } else {
            self.say(&serve::draining(self.server.snapshot().connections, within));
        }
        self.draining = true;
        self.server.drain(within);
    }

    fn reload(&mut self) {
        if self.line.file().is_none() && self.certificates.is_none() {
            return self.say("SIGHUP: there is nothing to read again without --config and without TLS");
        }
        tell_manager(State::Reloading);
        match (self.line.file(), &self.certificates) {
            (Some(file), _) => self.reload_file(&file.display().to_string()),
            (None, Some(certificates)) => certificates.reload(),
            (None, None) => {}
        }
        tell_manager(State::Ready);
    }

    fn reload_file(&mut self, file: &str) {
        match self.line.settings().and_then(|settings| self.apply(&settings).map(|()| settings)) {
            Ok(settings) => self.tell_of_reload(file, &settings),
            Err(problem) => note(format_args!("reload failed, all stays as it was: {problem}")),
        }
    }

    /// Changes what can change while the server runs: all or nothing.
    fn apply(&mut self, settings: &Settings) -> Result<(), Failure> {
        let options = &settings.serve.options;
        let certificates = match &self.certificates {
            Some(certificates) => certificates.check(&options.tls)?.map(|checked| (certificates, checked)),
            None => None,
        };
        let (limits_before, deadlines_before) = (self.server.limits(), self.server.deadlines());
        let changed = || -> Result<(), Failure> {
            self.server.set_limits(options.limits())?;
            self.server.set_deadlines(options.deadlines(settings.serve.service))?;
            certificates.map_or(Ok(()), |(certificates, checked)| certificates.replace(checked))
        };
        if let Err(failure) = changed() {
            // They were in force a moment ago.
            self.server.set_limits(limits_before)?;
            self.server.set_deadlines(deadlines_before)?;
            return Err(failure);
        }
        self.server.set_access(options.access());
        self.drain = options.times.drain;
        Ok(())
    }

    fn tell_of_reload(&self, file: &str, settings: &Settings) {
        self.say(&format!("reloaded {file}"));
        serve::bounds(&settings.serve, &self.server).iter().for_each(|line| self.say(line));
        self.certificates.iter().flat_map(Certificates::lines).for_each(|line| self.say(&line));
        let fixed = self.started.fixed_differences(settings);
        if !fixed.is_empty() {
            self.say(&format!(
                "warning: what cannot change while the server runs stays as it was: {}",
                fixed.join(", ")
            ));
        }
    }

    fn suspend_or_resume(&self) {
        match self.server.phase() {
            Phase::Serving => {
                self.server.suspend();
                self.say("suspended; SIGUSR2 resumes");
            }
            Phase::Suspended => match self.server.resume() {
                Ok(()) => self.say("resumed"),
                Err(error) => note(format_args!("cannot resume: {error}")),
            },
            _ => {}
        }
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            note(line);
        }
    }
}
