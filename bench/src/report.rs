//! Turns samples into ratios and ratios into a table. Knows nothing about how they were measured.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use crate::compare::Comparison;
use crate::scenario::{Cpu, Latency, Measured, Memory, PeerResult, Pin, Sample, Scenario};

/// The table for the terminal.
pub fn table(comparison: &Comparison) -> String {
    let mut out = String::new();
    let machine = &comparison.machine;
    let threads = if comparison.second_thread {
        ", servers with a second thread"
    } else {
        ""
    };
    writing(writeln!(
        out,
        "kernel {}, {} cores, load before {}{threads}\n\
         ratio to the base in the same round: median [quartiles] (all); of CPU, it is server CPU / client CPU,\n\
         and plain is of server CPU alone; of memory, plain is without the kernel's",
        machine.kernel, machine.cores, machine.load_before,
    ));
    for scenario in &comparison.scenarios {
        writing(writeln!(
            out,
            "\n{}: {}",
            scenario.work.title(),
            pinning(scenario.pin)
        ));
        let head = format!("{} / {}", scenario.work.figure_name(), scenario.base);
        writing(writeln!(
            out,
            "  {:<22}{head:>37}{}",
            "",
            columns(scenario.work.measured())
        ));
        for result in &scenario.results {
            writing(write!(out, "{}", row(scenario, result)));
        }
    }
    out
}

/// All samples, with the ratios of the table beside them.
pub fn json(comparison: &Comparison) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(comparison)?;
    for (place, scenario) in comparison.scenarios.iter().enumerate() {
        for (number, result) in scenario.results.iter().enumerate() {
            let entry = &mut value["scenarios"][place]["results"][number];
            entry["ratio"] = serde_json::to_value(ratio(scenario, result))?;
            entry["plain_ratio"] = serde_json::to_value(plain_ratio(scenario, result))?;
        }
    }
    Ok(value)
}

fn columns(measured: Measured) -> String {
    match measured {
        Measured::Cpu => format!(
            "{:>22}{:>11}{:>11}{:>11}{:>8}{:>7}",
            "plain", "server us", "client us", "per s", "batch", "share"
        ),
        Measured::Latency => format!(
            "{:>9}{:>9}{:>9}{:>9}{:>9}{:>11}{:>11}{:>7}",
            "p50 us", "p99", "p99.9", "max", "p99/p50", "per s", "server us", "share"
        ),
        Measured::Memory => format!("{:>22}{:>12}{:>12}", "plain", "user B", "kernel B"),
    }
}

fn row(scenario: &Scenario, result: &PeerResult) -> String {
    let mut out = String::new();
    let ratio = ratio(scenario, result).map_or("-".to_owned(), |ratio| {
        format!(
            "{:.3} [{:.3} {:.3}] ({:.3} {:.3})",
            ratio.median, ratio.lower, ratio.upper, ratio.min, ratio.max
        )
    });
    if let Some(values) = values(scenario, result) {
        writing(writeln!(out, "  {:<22}{ratio:>37}{values}", result.peer));
    }
    if let Some(failure) = &result.failure {
        writing(writeln!(out, "  {:<22}failed: {failure}", result.peer));
    }
    out
}

fn values(scenario: &Scenario, result: &PeerResult) -> Option<String> {
    let plain = plain_ratio(scenario, result).map_or("-".to_owned(), |plain| {
        format!("{:.3} [{:.3} {:.3}]", plain.median, plain.lower, plain.upper)
    });
    let cpu = |of: fn(&Cpu) -> f64| middle(result, move |sample| Some(of(cpu_of(sample)?)));
    let time = |of: fn(&Latency) -> f64| middle(result, move |sample| Some(of(latency_of(sample)?)));
    let bytes = |of: fn(&Memory) -> f64| middle(result, move |sample| Some(of(memory_of(sample)?)));
    Some(match scenario.work.measured() {
        Measured::Cpu => format!(
            "{plain:>22}{:>11.3}{:>11.3}{:>11.0}{:>8.1}{:>7.2}",
            cpu(|cpu| cpu.server_us)?,
            cpu(|cpu| cpu.client_us)?,
            cpu(|cpu| cpu.per_second)?,
            cpu(|cpu| cpu.batch)?,
            cpu(|cpu| cpu.share)?,
        ),
        Measured::Latency => format!(
            "{:>9.1}{:>9.1}{:>9.1}{:>9.1}{:>9.2}{:>11.0}{:>11.3}{:>7.2}",
            time(|time| time.p50_us)?,
            time(|time| time.p99_us)?,
            time(|time| time.p999_us)?,
            time(|time| time.max_us)?,
            time(|time| time.p99_us / time.p50_us)?,
            cpu(|cpu| cpu.per_second)?,
            cpu(|cpu| cpu.server_us)?,
            cpu(|cpu| cpu.share)?,
        ),
        Measured::Memory => format!(
            "{plain:>22}{:>12.0}{:>12.0}",
            bytes(|bytes| bytes.user)?,
            bytes(|bytes| bytes.kernel)?
        ),
    })
}

fn cpu_of(sample: &Sample) -> Option<&Cpu> {
    match sample {
        Sample::Cpu(cpu) => Some(cpu),
        Sample::Latency(latency) => Some(&latency.cpu),
        Sample::Memory(_) => None,
    }
}

fn latency_of(sample: &Sample) -> Option<&Latency> {
    match sample {
        Sample::Latency(latency) => Some(latency),
        _ => None,
    }
}

fn memory_of(sample: &Sample) -> Option<&Memory> {
    match sample {
        Sample::Memory(memory) => Some(memory),
        _ => None,
    }
}

/// The median of something over the rounds.
fn middle(result: &PeerResult, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    let samples = result.samples.iter().flatten();
    Spread::of(samples.filter_map(of)).map(|spread| spread.median)
}

/// A peer's figure relative to the base's, round by round.
pub fn ratio(scenario: &Scenario, result: &PeerResult) -> Option<Spread> {
    ratios(scenario, result, Sample::figure)
}

/// The same without the client's CPU, or the kernel's memory.
fn plain_ratio(scenario: &Scenario, result: &PeerResult) -> Option<Spread> {
    ratios(scenario, result, Sample::plain_figure)
}

fn ratios(scenario: &Scenario, result: &PeerResult, of: fn(&Sample) -> f64) -> Option<Spread> {
    let base = scenario
        .results
        .iter()
        .find(|result| result.peer == scenario.base)?;
    let rounds = result.samples.iter().zip(&base.samples);
    Spread::of(rounds.filter_map(|(sample, base)| Some(of(sample.as_ref()?) / of(base.as_ref()?))))
}

/// What the peer's bar in the plot says: the raw figure with its unit.
pub fn raw(scenario: &Scenario, result: &PeerResult) -> Option<String> {
    let plain = middle(result, |sample| Some(sample.plain_figure()))?;
    Some(match scenario.work.measured() {
        Measured::Memory => {
            let kernel = middle(result, |sample| Some(memory_of(sample)?.kernel))?;
            format!("{plain:.0} + {kernel:.0} B")
        }
        Measured::Latency => {
            let p99 = middle(result, |sample| Some(latency_of(sample)?.p99_us))?;
            format!("{plain:.0} us, p99 {p99:.0}")
        }
        _ if plain < 1.0 => format!("{plain:.3} us"),
        _ => format!("{plain:.2} us"),
    })
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
    /// Of at least one value.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.collect();
        if sorted.is_empty() {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Spread {
            min: at(0.0),
            lower: at(0.25),
            median: at(0.5),
            upper: at(0.75),
            max: at(1.0),
        })
    }
}

fn writing(result: std::fmt::Result) {
    result.expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Work;

    #[test]
    fn quartiles_lie_between_the_values() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0].into_iter()).expect("there are values");
        assert_eq!((spread.min, spread.max), (1.0, 4.0));
        assert_eq!((spread.lower, spread.median, spread.upper), (1.75, 2.5, 3.25));
    }

    #[test]
    fn one_value_is_all_of_its_spread() {
        let spread = Spread::of([2.0].into_iter()).expect("there is a value");
        assert_eq!((spread.min, spread.median, spread.max), (2.0, 2.0, 2.0));
    }

    #[test]
    fn a_round_counts_only_where_both_were_measured() {
        let result = |peer: &str, figures: [Option<f64>; 3]| PeerResult {
            peer: peer.to_owned(),
            samples: figures
                .map(|user| {
                    Some(Sample::Memory(Memory {
                        user: user?,
                        kernel: 0.0,
                    }))
                })
                .to_vec(),
            failure: None,
        };
        let scenario = Scenario {
            work: Work::Idle { connections: 1 },
            pin: Pin::Same,
            base: "base".to_owned(),
            results: vec![
                result("base", [Some(1.0), None, Some(2.0)]),
                result("other", [Some(3.0), Some(9.0), None]),
            ],
        };
        let spread = ratio(&scenario, &scenario.results[1]).expect("they share a round");
        assert_eq!((spread.min, spread.max), (3.0, 3.0));
    }
}
