//! Line charts as inline SVG. The page's style sheet defines colours and fonts.

use std::fmt::Write;

use super::html::escape;

/// A chart over optimizer steps.
pub(super) struct Chart<'a> {
    /// Its title, also for screen readers.
    pub title: &'a str,
    /// A sentence that describes the data, for screen readers.
    pub summary: String,
    /// The lines.
    pub series: Vec<Series>,
    /// Whether the vertical axis starts at zero.
    pub from_zero: bool,
    /// Format of values on the vertical axis.
    pub format: fn(f64) -> String,
    /// Whether the chart spans the full width.
    pub wide: bool,
}

/// One line.
pub(super) struct Series {
    /// Its name in the legend.
    pub name: &'static str,
    /// Its class in the style sheet: `a`, `b`, `c`.
    pub class: &'static str,
    /// Step and value, ascending by step.
    pub points: Vec<(f64, f64)>,
    /// Whether points are marked; for few points.
    pub marked: bool,
}

const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
/// Largest number of points drawn; a screen has no more columns.
const MOST_POINTS: usize = 900;

impl Chart<'_> {
    /// The chart as a figure; empty if there is nothing to draw.
    pub(super) fn figure(mut self) -> String {
        for series in &mut self.series {
            series.points.retain(|(step, value)| step.is_finite() && value.is_finite());
        }
        self.series.retain(|series| !series.points.is_empty());
        let Some((x, y)) = self.extents() else { return String::new() };
        let id: String = self.title.chars().filter(char::is_ascii_alphanumeric).collect();
        let class = if self.wide { " full" } else { "" };
        let mut html = format!(
            "<figure class=\"chart{class}\">\n<figcaption>{}{}</figcaption>\n",
            escape(self.title),
            self.legend()
        );
        if self.wide {
            html += &self.svg(x, y, (1080.0, 340.0), "broad", &id);
            // A variant for narrow screens, on which the broad one is illegible.
            html += &self.svg(x, y, (540.0, 300.0), "slim", &format!("{id}-slim"));
        } else {
            html += &self.svg(x, y, (540.0, 260.0), "only", &id);
        }
        html + "</figure>\n"
    }

    fn svg(&self, x: Extent, y: Extent, (width, height): (f64, f64), class: &str, id: &str) -> String {
        let place = |(step, value): (f64, f64)| {
            let across = LEFT + (step - x.low) / (x.high - x.low) * (width - LEFT - RIGHT);
            // Values outside the axis are drawn at its end.
            let value = value.clamp(y.low, y.high);
            let up = height - BOTTOM - (value - y.low) / (y.high - y.low) * (height - TOP - BOTTOM);
            (across, up)
        };
        let mut svg = format!(
            "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\n\
             <title id=\"{id}-t\">{}</title>\n<desc id=\"{id}-d\">{}</desc>\n",
            escape(self.title),
            escape(&self.summary),
        );
        let mut draw = |text: std::fmt::Arguments<'_>| _ = svg.write_fmt(text);
        for tick in y.ticks() {
            let (_, up) = place((x.low, tick));
            let end = width - RIGHT;
            draw(format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{up:.1}\" y2=\"{up:.1}\"/>\n"
            ));
            draw(format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                LEFT - 8.0,
                up + 4.5,
                escape(&(self.format)(tick))
            ));
        }
        for tick in x.ticks() {
            let (across, _) = place((tick, y.low));
            let base = height - BOTTOM;
            draw(format_args!(
                "<line class=\"axis\" x1=\"{across:.1}\" x2=\"{across:.1}\" y1=\"{base}\" y2=\"{}\"/>\n\
                 <text x=\"{across:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>\n",
                base + 4.0,
                base + 19.0,
            ));
        }
        let base = height - BOTTOM;
        draw(format_args!(
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{base}\" y2=\"{base}\"/>\n",
            width - RIGHT
        ));
        draw(format_args!(
            "<text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"end\">optimizer step</text>\n",
            width - RIGHT,
            height - 4.0
        ));
        for series in &self.series {
            let points = thinned(&series.points);
            let mut path = String::new();
            for (index, point) in points.iter().enumerate() {
                let (across, up) = place(*point);
                let _infallible = write!(path, "{}{across:.1} {up:.1}", if index == 0 { 'M' } else { 'L' });
            }
            draw(format_args!("<path class=\"line {}\" d=\"{path}\"/>\n", series.class));
            let alone = points.len() == 1;
            if (series.marked && points.len() <= 120) || alone {
                for point in &points {
                    let (across, up) = place(*point);
                    draw(format_args!(
                        "<circle class=\"{}\" cx=\"{across:.1}\" cy=\"{up:.1}\" r=\"3.5\"><title>{}, step {}: {}</title></circle>\n",
                        series.class,
                        escape(series.name),
                        point.0,
                        escape(&(self.format)(point.1)),
                    ));
                }
            }
        }
        svg + "</svg>\n"
    }

    fn legend(&self) -> String {
        if self.series.len() < 2 {
            return String::new();
        }
        let entry = |series: &Series| {
            format!(
                "<span><svg class=\"swatch\" viewBox=\"0 0 24 8\" aria-hidden=\"true\"><path class=\"line {}\" d=\"M1 4L23 4\"/></svg>{}</span>",
                series.class,
                escape(series.name)
            )
        };
        let entries: String = self.series.iter().map(entry).collect();
        format!("<span class=\"legend\">{entries}</span>")
    }

    fn extents(&self) -> Option<(Extent, Extent)> {
        let all = || self.series.iter().flat_map(|series| &series.points);
        let across = Extent::of(all().map(|point| point.0))?;
        let mut up = Extent::of(all().map(|point| point.1))?;
        if self.from_zero {
            up.low = up.low.min(0.0);
        }
        Some((across.padded(0.0), up.padded(0.06)))
    }
}

/// A range of numbers, never empty once padded.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Extent {
    low: f64,
    high: f64,
}

impl Extent {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        values.fold(None, |extent: Option<Self>, value| {
            let extent = extent.unwrap_or(Self { low: value, high: value });
            Some(Self { low: extent.low.min(value), high: extent.high.max(value) })
        })
    }

    fn padded(self, share: f64) -> Self {
        let span = self.high - self.low;
        if !span.is_finite() || span <= self.high.abs().max(self.low.abs()) * 1e-12 {
            let around = (self.high.abs() * 0.5).clamp(0.5, 1e300);
            return Self { low: self.low.max(-1e300) - around, high: self.high.min(1e300) + around };
        }
        // A range that starts at zero keeps its start.
        let low = if self.low == 0.0 { 0.0 } else { self.low - span * share };
        Self { low, high: self.high + span * share }
    }

    /// Round numbers within the range, about five.
    fn ticks(self) -> Vec<f64> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0) * power;
        let first = (self.low / step).ceil();
        let count = ((self.high / step).floor() - first).clamp(0.0, 12.0) as u64;
        // A multiple of a round step, rounded so that 0.30000000000000004 is 0.3.
        let round = |value: f64| format!("{value:.12e}").parse().unwrap_or(value);
        (0..=count).map(|index| round((first + index as f64) * step)).collect()
    }
}

/// At most [`MOST_POINTS`], the lowest and the highest of each bucket, so that no spike is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(MOST_POINTS);
    for bucket in points.chunks(points.len().div_ceil(MOST_POINTS / 2)) {
        let by_value = |left: &&(f64, f64), right: &&(f64, f64)| left.1.total_cmp(&right.1);
        let mut both: Vec<(f64, f64)> = bucket
            .iter()
            .min_by(by_value)
            .into_iter()
            .chain(bucket.iter().max_by(by_value))
            .copied()
            .collect();
        both.sort_by(|left, right| left.0.total_cmp(&right.0));
        both.dedup();
        kept.extend(both);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(Extent { low: 0.0, high: 1.0 }.ticks(), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(Extent { low: 0.13, high: 0.94 }.ticks(), [0.2, 0.4, 0.6, 0.8]);
        assert_eq!(Extent { low: 1.0, high: 60.0 }.ticks(), [20.0, 40.0, 60.0]);
    }

    #[test]
    fn a_spike_survives_thinning() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|step| (step as f64, 1.0)).collect();
        points[54_321].1 = 99.0;
        let thin = thinned(&points);
        assert!(thin.len() <= MOST_POINTS && thin.contains(&(54_321.0, 99.0)), "{}", thin.len());
    }

    #[test]
    fn extremes_are_drawn_with_finite_numbers() {
        for values in [
            vec![f64::MAX, f64::MIN],
            vec![0.0],
            vec![1e-300, 2e-300],
            vec![f64::NAN],
            vec![f64::INFINITY, 1.0],
        ] {
            let points = values.into_iter().enumerate().map(|(step, value)| (step as f64, value)).collect();
            let series = vec![Series { name: "n", class: "a", points, marked: true }];
            let svg = Chart {
                title: "t",
                summary: String::new(),
                series,
                from_zero: true,
                format: |v| v.to_string(),
                wide: false,
            }
            .figure();
            assert!(!svg.contains("\"NaN") && !svg.contains("inf\""), "{svg}");
        }
    }
}
