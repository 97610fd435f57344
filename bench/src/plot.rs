//! The comparison as a picture: a group of bars per scenario, a bar per peer, a whisker from quartile to quartile.

use std::fmt::Write;

use crate::compare::Comparison;
use crate::report::{Spread, base, costs, pinning, title};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 130.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 64.0;
const BAR: f64 = 18.0;
const GROUP_GAP: f64 = 38.0;
/// Keeps a figure readable where the line at 1 runs behind it.
const HALO: &str = "paint-order='stroke' stroke='#ffffff' stroke-width='5'";
const COLOURS: [&str; 8] = [
    "#6b7280", "#9ca3af", "#0f766e", "#14b8a6", "#d97706", "#7c3aed", "#be185d", "#2563eb",
];

pub fn svg(comparison: &Comparison) -> String {
    let mut out = Drawing::new(comparison);
    out.text(
        16.0,
        24.0,
        "font-size='16' font-weight='600'",
        "Server CPU per echoed message",
    );
    out.text(
        16.0,
        44.0,
        "fill='#4b5563'",
        &format!(
            "relative to {}, {}; less is better",
            comparison.base,
            pinning(comparison.pin)
        ),
    );

    let mut y = TOP;
    for scenario in &comparison.scenarios {
        y += GROUP_GAP;
        out.text(16.0, y - 8.0, "font-weight='600'", &title(scenario));
        let base = base(scenario, comparison.base);
        for (result, colour) in scenario.results.iter().zip(COLOURS.iter().cycle()) {
            let cost = costs(result, base);
            let micros = Spread::of(result.samples.iter().map(|sample| sample.server_us)).median;
            let middle = y + BAR / 2.0;
            out.label(middle, result.peer);
            out.bar(y, cost.median, colour);
            out.whisker(middle, cost.lower, cost.upper);
            let x = out.x(cost.upper.max(cost.median)) + 8.0;
            let value = format!("{:.2}  ({micros:.2} us)", cost.median);
            out.text(x, middle + 4.0, HALO, &value);
            y += BAR + 4.0;
        }
    }
    out.finish(y + 16.0)
}

struct Drawing {
    body: String,
    /// Pixels per unit of cost.
    scale: f64,
}

impl Drawing {
    fn new(comparison: &Comparison) -> Drawing {
        let mut longest = 1.0_f64;
        for scenario in &comparison.scenarios {
            let base = base(scenario, comparison.base);
            for result in &scenario.results {
                longest = longest.max(costs(result, base).upper);
            }
        }
        Drawing {
            body: String::new(),
            scale: (WIDTH - LEFT - RIGHT) / longest,
        }
    }

    fn x(&self, cost: f64) -> f64 {
        LEFT + cost * self.scale
    }

    fn bar(&mut self, y: f64, cost: f64, colour: &str) {
        let width = cost * self.scale;
        self.add(&format!(
            "<rect x='{LEFT}' y='{y}' width='{width:.1}' height='{BAR}' rx='2' fill='{colour}'/>"
        ));
    }

    fn whisker(&mut self, y: f64, lower: f64, upper: f64) {
        let (from, to) = (self.x(lower), self.x(upper));
        self.add(&format!(
            "<path d='M{from:.1} {y}H{to:.1}M{from:.1} {0}v8M{to:.1} {0}v8' stroke='#111827' fill='none'/>",
            y - 4.0
        ));
    }

    fn label(&mut self, middle: f64, peer: &str) {
        self.text(LEFT - 8.0, middle + 4.0, "text-anchor='end'", peer);
    }

    /// `text` is ours throughout, so nothing in it needs escaping.
    fn text(&mut self, x: f64, y: f64, style: &str, text: &str) {
        self.add(&format!("<text x='{x:.1}' y='{y:.1}' {style}>{text}</text>"));
    }

    fn add(&mut self, element: &str) {
        writeln!(self.body, "{element}").expect("writing to a String cannot fail");
    }

    fn finish(self, height: f64) -> String {
        let one = self.x(1.0);
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' \
             font-family='system-ui, sans-serif' font-size='12' fill='#111827'>\n\
             <rect width='100%' height='100%' fill='#ffffff'/>\n\
             <path d='M{one:.1} {TOP}V{height}' stroke='#6b7280' stroke-dasharray='3 4'/>\n{}</svg>\n",
            self.body
        )
    }
}
