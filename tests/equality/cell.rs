//! The cells of the table: in which style a side is written, and what carries it.

use crate::common::{self, World};

use super::scenario::Scenario;
use super::stage::Stage;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Async,
    /// With handlers on a worker.
    Event,
    /// With handlers on a queue: a thread's, or, in a simulation, one that is polled between its steps.
    Queued,
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
pub(crate) const CELLS: [Cell; 10] = [
    Cell { style: Style::Async, carrier: Carrier::Readiness },
    Cell { style: Style::Async, carrier: Carrier::Uring },
    Cell { style: Style::Async, carrier: Carrier::Simulated },
    Cell { style: Style::Event, carrier: Carrier::Readiness },
    Cell { style: Style::Event, carrier: Carrier::Uring },
    Cell { style: Style::Event, carrier: Carrier::Simulated },
    Cell { style: Style::Queued, carrier: Carrier::Readiness },
    Cell { style: Style::Queued, carrier: Carrier::Uring },
    Cell { style: Style::Queued, carrier: Carrier::Simulated },
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
        let other = self.other(role, name);
        let play = |world: &mut World| {
            (scenario.play)(&mut Stage::new(world, self.style, role, other));
        };
        let name = format!("{name} ({:?} on {:?}, {role:?}, with {other:?})", self.style, self.carrier);
        // The stage says for each of its servers in which style it is.
        let style = common::Style::Async;
        match self.carrier {
            Carrier::Readiness | Carrier::Sockets => common::on_readiness(&name, style, play),
            Carrier::Uring => common::on_uring(&name, style, play),
            Carrier::Simulated => common::on_simulation(&name, style, play),
        }
    }

    /// In which style the other side is: they take turns, so that each pair of styles meets in some scenarios and in every run in the
    /// same ones.
    fn other(self, role: Role, name: &str) -> Style {
        let all = [Style::Async, Style::Event, Style::Queued, Style::Blocking];
        // A blocking side makes the system's own calls: it is on no simulated network.
        let all = if self.carrier == Carrier::Simulated { &all[..3] } else { &all[..] };
        let turn = name.bytes().map(usize::from).sum::<usize>() + self.style as usize + 2 * (role as usize);
        all[turn % all.len()]
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
            fn queued_readiness() {
                play(CELLS[6]);
            }

            #[test]
            #[cfg_attr(not(target_os = "linux"), ignore = "io_uring is a part of Linux")]
            fn queued_uring() {
                play(CELLS[7]);
            }

            #[test]
            fn queued_simulated() {
                play(CELLS[8]);
            }

            #[test]
            fn blocking() {
                play(CELLS[9]);
            }
        })*)*
    };
}
pub(crate) use suite;
