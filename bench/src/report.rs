//! Turns samples into ratios and ratios into a table. Knows nothing about how they were measured.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use crate::compare::{Comparison, PeerResult, Pin, Sample, Scenario};

/// The table for the terminal.
pub fn table(comparison: &Comparison) -> String {
    let mut out = String::new();
    writing(writeln!(
        out,
        "server CPU per echoed message, {}{}, kernel {}, {} cores, load before {}\n\
         cost = server CPU / client CPU, as a ratio to {} in the same round: median [quartiles] (all)",
        pinning(comparison.pin),
        if comparison.second_thread {
            ", servers with a second thread"
        } else {
            ""
        },
        comparison.machine.kernel,
        comparison.machine.cores,
        comparison.machine.load_before,
        comparison.base,
    ));
    for scenario in &comparison.scenarios {
        writing(writeln!(
            out,
            "\n{:<30} {:>38} {:>7} {:>9} {:>9} {:>9} {:>7} {:>6}",
            title(scenario),
            "cost",
            "plain",
            "server us",
            "client us",
            "msg/s",
            "batch",
            "share"
        ));
        for result in &scenario.results {
            writing(writeln!(out, "{}", row(result, base(scenario, comparison.base))));
        }
    }
    out
}

/// All samples, with the ratios of the table beside them.
pub fn json(comparison: &Comparison) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(comparison)?;
    for (place, scenario) in comparison.scenarios.iter().enumerate() {
        let base = base(scenario, comparison.base);
        for (number, result) in scenario.results.iter().enumerate() {
            let entry = &mut value["scenarios"][place]["results"][number];
            entry["cost"] = serde_json::to_value(costs(result, base))?;
            entry["plain"] = serde_json::to_value(plain_costs(result, base))?;
        }
    }
    Ok(value)
}

fn row(result: &PeerResult, base: &PeerResult) -> String {
    let cost = costs(result, base);
    let plain = plain_costs(result, base);
    let middle = |of: fn(&Sample) -> f64| Spread::of(result.samples.iter().map(of)).median;
    format!(
        "  {:<28} {:>38} {:>7.3} {:>9.3} {:>9.3} {:>9.0} {:>7.1} {:>6.2}",
        result.peer,
        format!(
            "{:.3} [{:.3} {:.3}] ({:.3} {:.3})",
            cost.median, cost.lower, cost.upper, cost.min, cost.max
        ),
        plain.median,
        middle(|sample| sample.server_us),
        middle(|sample| sample.client_us),
        middle(|sample| sample.messages_per_second),
        middle(|sample| sample.batch),
        middle(|sample| sample.share),
    )
}

/// A peer's cost relative to the base, round by round: server CPU in units of the client's own, which drifts alike.
pub fn costs(result: &PeerResult, base: &PeerResult) -> Spread {
    ratios(result, base, |sample| sample.server_us / sample.client_us)
}

/// The same without the client's CPU.
fn plain_costs(result: &PeerResult, base: &PeerResult) -> Spread {
    ratios(result, base, |sample| sample.server_us)
}

fn ratios(result: &PeerResult, base: &PeerResult, of: fn(&Sample) -> f64) -> Spread {
    let rounds = result.samples.iter().zip(&base.samples);
    Spread::of(rounds.map(|(sample, base)| of(sample) / of(base)))
}

/// The base peer's samples in `scenario`.
pub fn base<'a>(scenario: &'a Scenario, name: &str) -> &'a PeerResult {
    let base = scenario.results.iter().find(|result| result.peer == name);
    base.expect("the base is always among the chosen peers")
}

pub fn title(scenario: &Scenario) -> String {
    let load = scenario.load;
    let connections = if load.connections == 1 {
        "connection"
    } else {
        "connections"
    };
    match load.depth {
        1 => format!("{} {connections}, {} B", load.connections, load.size),
        depth => format!(
            "{} {connections}, {} B, {depth} deep",
            load.connections, load.size
        ),
    }
}

pub fn pinning(pin: Pin) -> &'static str {
    match pin {
        Pin::Same => "client and server on one core",
        Pin::Separate => "client and server on a core each",
        Pin::None => "client and server not pinned",
    }
}

/// Where values lie: the middle one, the quartiles, and the ends.
#[derive(Serialize)]
pub struct Spread {
    pub min: f64,
    pub lower: f64,
    pub median: f64,
    pub upper: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Spread {
            min: at(0.0),
            lower: at(0.25),
            median: at(0.5),
            upper: at(0.75),
            max: at(1.0),
        }
    }
}

fn writing(result: std::fmt::Result) {
    result.expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_values() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0].into_iter());
        assert_eq!((spread.min, spread.max), (1.0, 4.0));
        assert_eq!((spread.lower, spread.median, spread.upper), (1.75, 2.5, 3.25));
    }

    #[test]
    fn one_value_is_all_of_its_spread() {
        let spread = Spread::of([2.0].into_iter());
        assert_eq!((spread.min, spread.median, spread.max), (2.0, 2.0, 2.0));
    }
}
