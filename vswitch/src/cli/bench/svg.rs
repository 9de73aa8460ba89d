//! Lines over two axes, as an SVG document.

use std::fmt::Write as _;

/// What is drawn.
#[derive(Debug)]
pub(super) struct Chart {
    /// First line, bold, and what stands below it.
    pub(super) title: String,
    pub(super) subtitle: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    /// Where on the x axis something happened, and what.
    pub(super) mark: Option<(f64, &'static str)>,
}

#[derive(Debug)]
pub(super) struct Axis {
    pub(super) label: &'static str,
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) scale: Scale,
    /// Values that are written, and how.
    pub(super) ticks: Vec<(f64, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    Log,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Of the picture, and what is left around the lines, pixels.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 172.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 56.0;
/// Told apart also by who does not see all colours (Okabe and Ito's).
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];

impl Axis {
    /// From 0 to a round number not below `most`.
    pub(super) fn from_zero(label: &'static str, most: f64) -> Self {
        let step = nice(most / 5.0);
        let to = (most / step).ceil().max(1.0) * step;
        Axis::linear(label, 0.0, to)
    }

    pub(super) fn linear(label: &'static str, from: f64, to: f64) -> Self {
        let step = nice((to - from) / 6.0);
        let mut ticks = Vec::new();
        let mut at = (from / step).ceil() * step;
        while at <= to + step / 1e6 {
            // Not "-0", nor a rounding error.
            let value = (at / step).round() * step + 0.0;
            ticks.push((value, short(value)));
            at += step;
        }
        Axis {
            label,
            from,
            to,
            scale: Scale::Linear,
            ticks,
        }
    }

    /// In powers of ten from one not above `least` to one not below `most`; both are above 0.
    pub(super) fn log(label: &'static str, least: f64, most: f64) -> Self {
        let (from, to) = (least.log10().floor(), most.log10().ceil());
        let to = to.max(from + 1.0);
        let mut ticks = Vec::new();
        let mut at = from;
        while at <= to + 0.5 {
            let value = 10f64.powf(at);
            ticks.push((value, short(value)));
            at += 1.0;
        }
        Axis {
            label,
            from: 10f64.powf(from),
            to: 10f64.powf(to),
            scale: Scale::Log,
            ticks,
        }
    }

    /// Where a value stands, as a share of the axis.
    fn share(&self, value: f64) -> f64 {
        let place = |v: f64| match self.scale {
            Scale::Linear => v,
            Scale::Log => v.max(f64::MIN_POSITIVE).ln(),
        };
        let (from, to) = (place(self.from), place(self.to));
        ((place(value) - from) / (to - from)).clamp(0.0, 1.0)
    }
}

/// A round number near `step`: 1, 2 or 5 times a power of ten.
fn nice(step: f64) -> f64 {
    let step = step.max(f64::MIN_POSITIVE);
    let ten = 10f64.powf(step.log10().floor());
    let round = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|r| step <= r * ten * 1.000_001);
    ten * round.unwrap_or(10.0)
}

/// As many decimals as it needs, up to six.
fn short(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

impl Chart {
    pub(super) fn svg(&self) -> String {
        let (wide, high) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let (right, bottom) = (LEFT + wide, TOP + high);
        let x = |v: f64| LEFT + wide * self.x.share(v);
        let y = |v: f64| bottom - high * self.y.share(v);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>\n\
             <text x=\"{LEFT}\" y=\"44\" font-size=\"12\" fill=\"#666\">{}</text>\n",
            escaped(&self.title),
            escaped(&self.subtitle),
        );
        for (value, name) in &self.x.ticks {
            let at = x(*value);
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                escaped(name),
            );
        }
        for (value, name) in &self.y.ticks {
            let at = y(*value);
            let _ = writeln!(
                out,
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.5,
                escaped(name),
            );
        }
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" stroke=\"#222\" fill=\"none\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            LEFT + wide / 2.0,
            HEIGHT - 14.0,
            escaped(self.x.label),
            TOP + high / 2.0,
            escaped(self.y.label),
        );
        if let Some((value, what)) = self.mark {
            let at = x(value);
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#222\" stroke-dasharray=\"4 3\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                at + 6.0,
                TOP + 14.0,
                escaped(what),
            );
        }
        for (i, line) in self.lines.iter().enumerate() {
            let colour = COLOURS.get(i % COLOURS.len()).copied().unwrap_or("#222");
            let mut path = String::new();
            for (n, (px, py)) in line.points.iter().enumerate() {
                let command = if n == 0 { 'M' } else { 'L' };
                let _ = write!(path, "{command}{:.1} {:.1}", x(*px), y(*py));
            }
            let at = TOP + 8.0 + 20.0 * f64::from(u32::try_from(i).unwrap_or(0));
            let _ = writeln!(
                out,
                "<path d=\"{path}\" stroke=\"{colour}\" stroke-width=\"2\" stroke-linejoin=\"round\" fill=\"none\"/>\
                 <path d=\"M{:.1} {at:.1}h18\" stroke=\"{colour}\" stroke-width=\"3\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                right + 12.0,
                right + 36.0,
                at + 4.5,
                escaped(&line.name),
            );
        }
        out += "</svg>\n";
        out
    }
}

#[cfg(test)]
mod tests {
    use super::{Axis, Chart, Line, nice, short};

    #[test]
    fn steps_are_round_and_ticks_cover_the_axis() {
        for (step, round) in [
            (0.7, 1.0),
            (1.0, 1.0),
            (1.1, 2.0),
            (3.0, 5.0),
            (6.0, 10.0),
            (0.031, 0.05),
        ] {
            assert!((nice(step) - round).abs() < 1e-9, "{step}: {}", nice(step));
        }
        let names = |a: &Axis| a.ticks.iter().map(|(_, n)| n.clone()).collect::<Vec<_>>();
        assert_eq!(
            names(&Axis::from_zero("", 4.3)),
            ["0", "1", "2", "3", "4", "5"]
        );
        assert_eq!(
            names(&Axis::linear("", -300.0, 700.0)),
            ["-200", "0", "200", "400", "600"]
        );
        assert_eq!(names(&Axis::log("", 0.3, 42.0)), ["0.1", "1", "10", "100"]);
        assert_eq!(short(0.5), "0.5");
    }

    #[test]
    fn a_line_goes_from_corner_to_corner() {
        let chart = Chart {
            title: "a < b & c".to_owned(),
            subtitle: String::new(),
            x: Axis::linear("x", 0.0, 10.0),
            y: Axis::log("y", 1.0, 100.0),
            lines: vec![Line {
                name: "l".to_owned(),
                points: vec![(0.0, 1.0), (5.0, 10.0), (10.0, 100.0), (20.0, 0.0)],
            }],
            mark: Some((5.0, "here")),
        };
        let svg = chart.svg();
        // What lies outside stays at the edge.
        assert!(
            svg.contains("M70.0 424.0L379.0 244.0L688.0 64.0L688.0 424.0"),
            "{svg}"
        );
        assert!(svg.contains("a &lt; b &amp; c"), "{svg}");
    }
}
