//! A scenario: what is played, and where it does not apply.

use super::cell::{Carrier, Cell, Role, Style};
use super::stage::Stage;

pub(crate) struct Scenario {
    pub(crate) play: fn(&mut Stage<'_>),
    exemptions: Vec<(Exempt, &'static str)>,
}

#[derive(Copy, Clone)]
enum Exempt {
    Role(Role),
    Style(Style),
    /// Styles that hand things on to another thread, where time is real.
    Hurry,
}

impl Scenario {
    /// One that applies everywhere.
    pub(crate) fn new(play: fn(&mut Stage<'_>)) -> Scenario {
        Scenario { play, exemptions: Vec::new() }
    }

    /// It does not apply to servers, or not to clients, for a reason.
    pub(crate) fn not_for(mut self, role: Role, reason: &'static str) -> Scenario {
        self.exemptions.push((Exempt::Role(role), reason));
        self
    }

    /// It is about being in time.
    pub(crate) fn in_time(mut self) -> Scenario {
        self.exemptions.push((Exempt::Hurry, IN_TIME));
        self
    }

    /// It does not apply to a style, for a reason. Handlers of events are the same to it wherever they run.
    pub(crate) fn not_in(mut self, style: Style, reason: &'static str) -> Scenario {
        self.exemptions.push((Exempt::Style(style), reason));
        self
    }

    /// Why it does not apply to this role in this cell; `None` if it does.
    pub(crate) fn exemption(&self, cell: Cell, role: Role) -> Option<&'static str> {
        let applies = |exempt: &Exempt| match *exempt {
            Exempt::Role(exempt) => exempt == role,
            Exempt::Style(Style::Event) => matches!(cell.style, Style::Event | Style::Queued),
            Exempt::Style(exempt) => exempt == cell.style,
            Exempt::Hurry => cell.style == Style::Queued && cell.carrier != Carrier::Simulated,
        };
        self.exemptions.iter().find(|(exempt, _)| applies(exempt)).map(|(_, reason)| *reason)
    }
}

const IN_TIME: &str = "It is about being in time: with handlers on a queue it is played on virtual time, where nobody is late by accident.";
