//! The comparison as a picture: a panel per scenario, a bar per peer for the median ratio to the base, a whisker from
//! quartile to quartile. Bars that would leave the panel are cut, and tell their length.

use std::fmt::Write;

use crate::compare::Comparison;
use crate::report::{pinning, ratio, raw};
use crate::scenario::{PeerResult, Scenario};

const COLUMNS: usize = 3;
const PANEL: f64 = 565.0;
const MARGIN: f64 = 20.0;
const TOP: f64 = 64.0;
/// Where bars begin in a panel, and how far they reach.
const LEFT: f64 = 150.0;
const REACH: f64 = 220.0;
/// Where the figures begin.
const FIGURES: f64 = LEFT + REACH + 14.0;
const RATIO_MAX: f64 = 2.0;
const BAR: f64 = 12.0;
const ROW: f64 = 17.0;
const HEAD: f64 = 44.0;
const PANEL_GAP: f64 = 26.0;

/// By the beginning of the peer's name; the first that fits.
const COLOURS: &[(&str, &str)] = &[
    ("wharf", "#0d9488"),
    ("bare", "#334155"),
    ("tokio", "#d97706"),
    ("", "#94a3b8"),
];

pub fn svg(comparison: &Comparison) -> String {
    let mut drawing = Drawing { body: String::new() };
    drawing.text(
        MARGIN,
        28.0,
        "font-size='17' font-weight='600'",
        "What a server costs, relative to a base",
    );
    let machine = &comparison.machine;
    let subtitle = format!(
        "median ratio and quartiles; less is better; bars end at {RATIO_MAX}; Linux {}, {} cores",
        machine.kernel, machine.cores
    );
    drawing.text(MARGIN, 48.0, "fill='#4b5563'", &subtitle);
    let mut y = TOP;
    for line in comparison.scenarios.chunks(COLUMNS) {
        for (column, scenario) in line.iter().enumerate() {
            drawing.panel(MARGIN + column as f64 * PANEL, y, scenario);
        }
        let rows = line.iter().map(|scenario| scenario.results.len()).max();
        y += HEAD + rows.unwrap_or(0) as f64 * ROW + PANEL_GAP;
    }
    drawing.finish(
        2.0 * MARGIN + comparison.scenarios.len().min(COLUMNS) as f64 * PANEL,
        y,
    )
}

struct Drawing {
    body: String,
}

impl Drawing {
    fn panel(&mut self, x: f64, y: f64, scenario: &Scenario) {
        self.text(
            x,
            y + 16.0,
            "font-weight='600' font-size='13'",
            &scenario.work.title(),
        );
        let of_what = format!(
            "{} relative to {}, {}",
            scenario.work.figure_name(),
            scenario.base,
            pinning(scenario.pin)
        );
        self.text(x, y + 31.0, "fill='#6b7280' font-size='11'", &of_what);
        let (top, bottom) = (y + HEAD - 4.0, y + HEAD + scenario.results.len() as f64 * ROW);
        for (number, result) in scenario.results.iter().enumerate() {
            self.row(x, y + HEAD + number as f64 * ROW, scenario, result);
        }
        let one = x + LEFT + REACH / RATIO_MAX;
        self.add(&format!(
            "<path d='M{one:.1} {top}V{bottom}' stroke='#111827' stroke-dasharray='2 3' opacity='.6'/>"
        ));
    }

    fn row(&mut self, x: f64, y: f64, scenario: &Scenario, result: &PeerResult) {
        let baseline = y + BAR - 2.0;
        self.text(x + LEFT - 8.0, baseline, "text-anchor='end'", &result.peer);
        let figures = match (ratio(scenario, result), raw(scenario, result)) {
            (Some(ratio), Some(raw)) => {
                self.bar(x, y, ratio.median, &result.peer);
                self.whisker(x, y, ratio.lower, ratio.upper);
                format!("{:.2}  ({raw})", ratio.median)
            }
            (None, Some(raw)) => raw,
            _ => String::new(),
        };
        let failed = if result.failure.is_some() { "failed " } else { "" };
        self.text(x + FIGURES, baseline, "", &format!("{failed}{figures}"));
    }

    fn bar(&mut self, x: f64, y: f64, ratio: f64, peer: &str) {
        let colour = COLOURS
            .iter()
            .find(|(start, _)| peer.starts_with(start))
            .map_or("", |(_, colour)| colour);
        let (left, width) = (x + LEFT, extent(ratio));
        self.add(&format!(
            "<rect x='{left:.1}' y='{y:.1}' width='{width:.1}' height='{BAR}' rx='1.5' fill='{colour}'/>"
        ));
        if ratio > RATIO_MAX {
            // Two strokes through the end say that it goes on.
            let (cut, bottom) = (left + width - 14.0, y + BAR);
            self.add(&format!(
                "<path d='M{cut:.1} {bottom:.1}l5 -{BAR}m4 0l-5 {BAR}' stroke='#ffffff' stroke-width='2'/>"
            ));
        }
    }

    fn whisker(&mut self, x: f64, y: f64, lower: f64, upper: f64) {
        let (from, to) = (x + LEFT + extent(lower), x + LEFT + extent(upper));
        let (middle, high) = (y + BAR / 2.0, y + BAR / 2.0 - 3.0);
        self.add(&format!(
            "<path d='M{from:.1} {middle:.1}H{to:.1}M{from:.1} {high:.1}v6M{to:.1} {high:.1}v6' \
             stroke='#dc2626' fill='none'/>"
        ));
    }

    /// `text` is ours throughout, so nothing in it needs escaping.
    fn text(&mut self, x: f64, y: f64, style: &str, text: &str) {
        self.add(&format!("<text x='{x:.1}' y='{y:.1}' {style}>{text}</text>"));
    }

    fn add(&mut self, element: &str) {
        writeln!(self.body, "{element}").expect("writing to a String cannot fail");
    }

    fn finish(self, width: f64, height: f64) -> String {
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' \
             font-family='system-ui, sans-serif' font-size='12' fill='#111827'>\n\
             <rect width='100%' height='100%' fill='#ffffff'/>\n{}</svg>\n",
            self.body
        )
    }
}

fn extent(ratio: f64) -> f64 {
    ratio.min(RATIO_MAX) / RATIO_MAX * REACH
}
