//! A scenario: what is played, and where it does not apply.

use super::cell::{Cell, Role, Style};
use super::stage::Stage;

pub(crate) struct Scenario {
    pub(crate) play: fn(&mut Stage<'_>),
    exemptions: Vec<(Exempt, &'static str)>,
}

#[derive(Copy, Clone)]
enum Exempt {
    Role(Role),
    Style(Style),
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

    /// It does not apply to a style, for a reason.
    pub(crate) fn not_in(mut self, style: Style, reason: &'static str) -> Scenario {
        self.exemptions.push((Exempt::Style(style), reason));
        self
    }

    /// Why it does not apply to this role in this cell; `None` if it does.
    pub(crate) fn exemption(&self, cell: Cell, role: Role) -> Option<&'static str> {
        let applies = |exempt: &Exempt| match *exempt {
            Exempt::Role(exempt) => exempt == role,
            Exempt::Style(exempt) => exempt == cell.style,
        };
        self.exemptions.iter().find(|(exempt, _)| applies(exempt)).map(|(_, reason)| *reason)
    }
}
