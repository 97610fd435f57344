//! `wharf probe`: what this machine offers, one fact on a line.
//!
//! A line is a name, spaces, and the fact. `NAME.hint` stands below what is missing or could be better. Names stay as they
//! are from one release to the next; new ones may come.

use std::fmt::Display;
use std::io::{self, Write};

use wharf::probe::{Probe, Refusal, ResourceLimit, UringFeatures};

use crate::exit::Failure;

pub(crate) fn run() -> Result<(), Failure> {
    let found = wharf::probe();
    print(&facts(&found)).map_err(Failure::of_output)?;
    match (&found.uring, &found.readiness) {
        (Err(_), Err(_)) => Err(Failure::Found(String::from("no backend works here"))),
        _ => Ok(()),
    }
}

type Fact = (&'static str, String);

fn facts(found: &Probe) -> Vec<Fact> {
    let mut facts = vec![("kernel", found.kernel.clone()), ("processors", found.processors.to_string())];
    if let Some(value) = std::env::var_os("WHARF_BACKEND") {
        facts.push(("WHARF_BACKEND", value.to_string_lossy().into_owned()));
    }
    facts.push(("auto", found.auto.as_ref().map_or_else(no, ToString::to_string)));
    match &found.uring {
        Ok(features) => facts.extend(of_uring(*features)),
        Err(refusal) => facts.extend(of_refusal("uring", "uring.hint", refusal)),
    }
    match &found.readiness {
        Ok(poller) => facts.push(("readiness", format!("yes, {poller}"))),
        Err(refusal) => facts.extend(of_refusal("readiness", "readiness.hint", refusal)),
    }
    facts.extend(of_limits(found));
    facts
}

fn of_refusal(name: &'static str, hint: &'static str, refusal: &Refusal) -> [Fact; 2] {
    [(name, no(format_args!("{}: {}", refusal.step, refusal.cause))), (hint, refusal.hint.clone())]
}

fn of_uring(features: UringFeatures) -> Vec<Fact> {
    let UringFeatures { receive_caps, no_iowait, no_index, .. } = features;
    let each = [
        (
            "uring.receive_caps",
            receive_caps,
            "uring.receive_caps.hint",
            "Linux 6.17 ends a receive by itself",
        ),
        (
            "uring.no_iowait",
            no_iowait,
            "uring.no_iowait.hint",
            "before Linux 6.15 an idle worker shows as I/O wait",
        ),
        ("uring.no_index", no_index, "uring.no_index.hint", "Linux 6.6 saves a memory access per request"),
    ];
    let mut facts = vec![("uring", String::from("yes"))];
    for (name, is_there, hint_name, hint) in each {
        facts.push((name, String::from(if is_there { "yes" } else { "no" })));
        if !is_there {
            facts.push((hint_name, String::from(hint)));
        }
    }
    facts
}

fn of_limits(found: &Probe) -> Vec<Fact> {
    let mut facts = vec![("descriptors", limit(found.descriptors))];
    if can_be_raised(found.descriptors) {
        facts.push((
            "descriptors.hint",
            String::from("`ulimit -n hard` raises it; `serve` and `demo` do so themselves"),
        ));
    }
    facts.push(("locked_memory", limit(found.locked_memory)));
    let backlog = found.listen_backlog;
    facts.push(("listen_backlog", backlog.map_or_else(unknown, |connections| connections.to_string())));
    if backlog.is_some_and(|connections| connections < BACKLOG) {
        let hint = format!("servers ask for {BACKLOG} by default: raise the sysctl net.core.somaxconn");
        facts.push(("listen_backlog.hint", hint));
    }
    let ports = found.ephemeral_ports.as_ref();
    facts.push((
        "ephemeral_ports",
        ports.map_or_else(unknown, |ports| format!("{}-{}", ports.start(), ports.end())),
    ));
    facts
}

fn limit(limit: ResourceLimit) -> String {
    let number =
        |limit: Option<u64>| limit.map_or_else(|| String::from("unlimited"), |limit| limit.to_string());
    format!("{}, hard limit {}", number(limit.soft), number(limit.hard))
}

fn can_be_raised(limit: ResourceLimit) -> bool {
    limit.soft.is_some_and(|soft| limit.hard.is_none_or(|hard| soft < hard))
}

fn no(why: impl Display) -> String {
    format!("no: {why}")
}

fn unknown() -> String {
    String::from("unknown")
}

fn print(facts: &[Fact]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for (name, fact) in facts {
        writeln!(stdout, "{name:<NAME_WIDTH$}  {fact}")?;
    }
    stdout.flush()
}

/// What `wharf::SocketOptions` asks for by default.
const BACKLOG: u32 = 1024;

/// The longest name, but for hints that few machines need.
const NAME_WIDTH: usize = "uring.receive_caps".len();
