//! The cells of the table: in which style a side is written, and what carries it.

use crate::common::{self, World};

use super::scenario::Scenario;
use super::stage::Stage;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Async,
    Event,
    Blocking,
}

/// What carries the bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Readiness,
    Uring,
    Simulated,
    /// The system's own calls: a blocking connection is on no backend. Its peer is on readiness.
    Sockets,
}

/// Which side of a scenario is in question.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) style: Style,
    pub(crate) carrier: Carrier,
}

/// The columns of the table.
pub(crate) const CELLS: [Cell; 7] = [
    Cell { style: Style::Async, carrier: Carrier::Readiness },
    Cell { style: Style::Async, carrier: Carrier::Uring },
    Cell { style: Style::Async, carrier: Carrier::Simulated },
    Cell { style: Style::Event, carrier: Carrier::Readiness },
    Cell { style: Style::Event, carrier: Carrier::Uring },
    Cell { style: Style::Event, carrier: Carrier::Simulated },
    Cell { style: Style::Blocking, carrier: Carrier::Sockets },
];

impl Cell {
    /// Plays `scenario` in this cell, in each role that it has; where it has none, it says why.
    pub(crate) fn play(self, name: &str, scenario: &Scenario) {
        for role in [Role::Server, Role::Client] {
            match scenario.exemption(self, role) {
                Some(reason) => assert!(reason.ends_with('.'), "{name}: a sentence says why: {reason}"),
                None => self.play_as(role, name, scenario),
            }
        }
    }

    pub(crate) fn play_as(self, role: Role, name: &str, scenario: &Scenario) {
        let play = |world: &mut World| {
            (scenario.play)(&mut Stage::new(world, self.style, role));
        };
        let name = format!("{name} ({:?} on {:?}, {role:?})", self.style, self.carrier);
        // The peer is the same in every cell of a carrier.
        let server = match (role, self.style) {
            (Role::Server, Style::Event) => common::Style::Event,
            _ => common::Style::Async,
        };
        match self.carrier {
            Carrier::Readiness | Carrier::Sockets => common::on_readiness(&name, server, play),
            Carrier::Uring => common::on_uring(&name, server, play),
            Carrier::Simulated => common::on_simulation(&name, server, play),
        }
    }
}

/// All scenarios by subject, and for each of them a test in each cell.
macro_rules! suite {
    ($($module:ident: $subject:literal { $($name:ident,)* })*) => {
        fn all() -> $crate::table::Suite {
            vec![$(($subject, vec![$((stringify!($name), $module::$name())),*])),*]
        }

        $($(mod $name {
            use $crate::cell::{CELLS, Cell};

            fn play(cell: Cell) {
                cell.play(stringify!($name), &super::$module::$name());
            }

            #[test]
            fn async_readiness() {
                play(CELLS[0]);
            }

            #[test]
            #[cfg_attr(not(target_os = "linux"), ignore = "io_uring is a part of Linux")]
            fn async_uring() {
                play(CELLS[1]);
            }

            #[test]
            fn async_simulated() {
                play(CELLS[2]);
            }

            #[test]
            fn event_readiness() {
                play(CELLS[3]);
            }

            #[test]
            #[cfg_attr(not(target_os = "linux"), ignore = "io_uring is a part of Linux")]
            fn event_uring() {
                play(CELLS[4]);
            }

            #[test]
            fn event_simulated() {
                play(CELLS[5]);
            }

            #[test]
            fn blocking() {
                play(CELLS[6]);
            }
        })*)*
    };
}
pub(crate) use suite;
