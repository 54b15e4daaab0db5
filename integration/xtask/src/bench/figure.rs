//! Figures: samples, their median and range, and how they compare with what is to be reached.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    unit: &'static str,
    samples: Vec<f64>,
    reach: Option<f64>,
}

impl Figure {
    pub(crate) fn new(name: &str, unit: &'static str, samples: Vec<f64>) -> Figure {
        Figure { name: name.to_owned(), unit, samples, reach: None }
    }

    /// A figure of times, shown in milliseconds.
    pub(crate) fn times(name: &str, samples: &[Duration]) -> Figure {
        let samples = samples.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        Figure::new(name, "ms", samples)
    }

    /// What the figure is to stay at or below, in its own unit.
    pub(crate) fn reach(mut self, most: f64) -> Figure {
        self.reach = Some(most);
        self
    }

    pub(crate) fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get((sorted.len() - 1) / 2)?;
        Some(f64::midpoint(*lower, *upper))
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    fn range(&self) -> Option<(f64, f64)> {
        let sorted = self.sorted();
        Some((*sorted.first()?, *sorted.last()?))
    }
}

/// All figures, at most 100 columns wide.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut text = format!(
        "{:<50} {:>11} {:>15} {:>3} {:>9} {:>6}\n",
        "what", "median", "min–max", "n", "reach", "of it"
    );
    for figure in figures {
        let unit = figure.unit;
        let median = figure.median();
        let shown = median.map_or("-".to_owned(), |median| format!("{} {unit}", number(median)));
        let range = match figure.range() {
            Some((least, most)) if figure.samples.len() > 1 => {
                format!("{}–{}", number(least), number(most))
            }
            Some(_) | None => String::new(),
        };
        let reach = figure.reach.map(|most| format!("≤ {most}")).unwrap_or_default();
        let part = median.zip(figure.reach).map(|(median, most)| format!("{:.2}", median / most));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<50} {shown:>11} {range:>15} {:>3} {reach:>9} {:>6}",
            figure.name,
            figure.samples.len(),
            part.unwrap_or_default()
        );
    }
    text
}

/// All figures with all samples.
pub(crate) fn json(figures: &[Figure]) -> Value {
    let figures = figures.iter().map(|figure| {
        let range = figure.range();
        json!({
            "name": figure.name.trim_start(),
            "unit": figure.unit,
            "median": figure.median(),
            "min": range.map(|(least, _)| least),
            "max": range.map(|(_, most)| most),
            "reach": figure.reach,
            "samples": figure.samples,
        })
    });
    json!({ "schema": 1, "figures": figures.collect::<Vec<_>>() })
}

/// Three digits, roughly.
fn number(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Figure::new("", "ms", vec![4.0, 1.0, 2.0, 9.0]).median(), Some(3.0));
        assert_eq!(Figure::new("", "ms", vec![4.0, 1.0, 9.0]).median(), Some(4.0));
        assert_eq!(Figure::new("", "ms", Vec::new()).median(), None);
    }

    #[test]
    fn no_line_is_longer_than_a_hundred_columns() {
        let name = "x".repeat(50);
        let figure = Figure::new(&name, "req/h", vec![1440.0, 12_345.6]).reach(3600.0);
        assert!(table(&[figure]).lines().all(|line| line.chars().count() <= 100));
    }
}
