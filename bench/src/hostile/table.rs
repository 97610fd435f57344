//! Samples as a table. Knows nothing about how they were taken.

use std::fmt::Write;

use super::{Case, Named, Outcome, Round, Sample};
use crate::report::Spread;

/// The table for the terminal; everything is a median over the rounds.
pub fn table(outcome: &Outcome) -> String {
    let mut out = String::new();
    let machine = &outcome.machine;
    line(
        &mut out,
        &format!(
            "kernel {}, {} cores, load before {}\n\
             a good client, 64 B, {} round trips a second, {} in each of {} rounds, beside {} hostile peers\n\
             us, medians over the rounds; ratio is of the p99s, with (least, most) of the rounds; cpu is of a core",
            machine.kernel,
            machine.cores,
            machine.load_before,
            outcome.rate,
            outcome.messages,
            outcome
                .cases
                .iter()
                .map(|case| case.rounds.len())
                .max()
                .unwrap_or(0),
            outcome.peers,
        ),
    );
    let mut before = None;
    for case in &outcome.cases {
        if before != Some(case.kind) {
            before = Some(case.kind);
            line(
                &mut out,
                &format!("\n{}: {}", case.kind.name(), case.kind.about()),
            );
            line(&mut out, HEAD_ABOVE);
            line(&mut out, HEAD);
        }
        line(&mut out, &row(case));
    }
    out
}

const HEAD_ABOVE: &str = "                        alone                     beside                                            \
                          server cpu      server MB      hostile";
const HEAD: &str = "                          p50     p99     max      p50     p99     max                    ratio   \
                    alone beside   alone beside    held   cpu  done";

fn row(case: &Case) -> String {
    let name = format!("{} {}", case.style.name(), case.backend.name());
    if let Some(failure) = &case.failure {
        return format!("  {name:<20}failed: {failure}");
    }
    let alone = |of: fn(&Sample) -> f64| middle(case, |round| of(&round.alone));
    let beside = |of: fn(&Sample) -> f64| middle(case, |round| of(&round.beside));
    let p99 = |sample: &Sample| sample.round_trips.p99;
    let of_rounds = Spread::of(
        case.rounds
            .iter()
            .map(|round| p99(&round.beside) / p99(&round.alone)),
    );
    let of_rounds = of_rounds.map_or((0.0, 0.0), |spread| (spread.min, spread.max));
    let ratio = format!(
        "{:.2} ({:.2} {:.2})",
        beside(p99) / alone(p99),
        of_rounds.0,
        of_rounds.1
    );
    format!(
        "  {name:<20}{:>7.0} {:>7.0} {:>7.0}  {:>7.0} {:>7.0} {:>7.0} {ratio:>24}   \
         {:>5.3}  {:>5.3}   {:>5.1} {:>6.1}  {:>6.0} {:>5.2} {:>5.2}",
        alone(|sample| sample.round_trips.p50),
        alone(p99),
        alone(|sample| sample.round_trips.max),
        beside(|sample| sample.round_trips.p50),
        beside(p99),
        beside(|sample| sample.round_trips.max),
        alone(|sample| sample.server_share),
        beside(|sample| sample.server_share),
        alone(|sample| sample.resident as f64 / MB),
        beside(|sample| sample.resident as f64 / MB),
        middle(case, |round| round.fleet.held as f64),
        middle(case, |round| round.fleet.cpu_share),
        middle(case, |round| round.fleet.done_share),
    )
}

const MB: f64 = 1e6;

fn middle(case: &Case, of: impl Fn(&Round) -> f64) -> f64 {
    Spread::of(case.rounds.iter().map(of)).map_or(0.0, |spread| spread.median)
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("writing to a String cannot fail");
}
