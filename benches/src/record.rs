//! What is measured: one figure of one case.

use serde::Serialize;

/// A figure. Its unit is the last word of the metric's name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// What was measured.
    pub case: String,
    /// Which figure of it, with its unit.
    pub metric: String,
    /// How many samples.
    pub n: usize,
    /// The sample in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The median divided by that of the reference, which ran in turn with it; none without a reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

impl Record {
    /// The figure that samples make. At least one sample is needed.
    #[must_use]
    pub fn new(case: &str, metric: &str, samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            case: case.to_owned(),
            metric: metric.to_owned(),
            n: sorted.len(),
            median: median(&sorted),
            min: sorted.first().copied().unwrap_or(f64::NAN),
            max: sorted.last().copied().unwrap_or(f64::NAN),
            ratio: None,
        }
    }

    /// The same with its ratio to a reference.
    #[must_use]
    pub fn against(mut self, reference: &Self) -> Self {
        self.ratio = Some(self.median / reference.median);
        self
    }
}

impl Record {
    fn shown(&self) -> String {
        // Three digits are more than any of this is worth.
        let digits = |value: f64| match value.abs() {
            100.0.. => format!("{value:.0}"),
            10.0.. => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        };
        let median = digits(self.median);
        match self.n {
            0 | 1 => median,
            _ => format!("{median} ({}–{})", digits(self.min), digits(self.max)),
        }
    }
}

/// The middle of sorted samples; the mean of the two in the middle of an even number.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted {
        [] => f64::NAN,
        _ if sorted.len().is_multiple_of(2) => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

/// Prints figures for people.
pub fn print_table(records: &[Record]) {
    let width = records
        .iter()
        .map(|record| record.case.len())
        .max()
        .unwrap_or(4)
        .max(4);
    let wide = records
        .iter()
        .map(|record| record.metric.len())
        .max()
        .unwrap_or(6)
        .max(6);
    println!(
        "{:<width$}  {:<wide$} {:>4} {:>12} {:>12} {:>12} {:>7}",
        "case", "metric", "n", "median", "min", "max", "ratio"
    );
    for record in records {
        let ratio = record
            .ratio
            .map_or(String::new(), |ratio| format!("{ratio:.2}"));
        println!(
            "{:<width$}  {:<wide$} {:>4} {:>12.3} {:>12.3} {:>12.3} {ratio:>7}",
            record.case, record.metric, record.n, record.median, record.min, record.max
        );
    }
}

/// Prints some metrics as a table for `docs/performance.md`: a line for each case that has one of them, each figure
/// as the median and, of several samples, the least and the greatest.
pub fn print_markdown(records: &[Record], metrics: &[&str]) {
    let has_some = records
        .iter()
        .any(|record| metrics.contains(&record.metric.as_str()));
    if !has_some {
        return;
    }
    println!("\n| case | {} |", metrics.join(" | "));
    println!("|---|{}", "---|".repeat(metrics.len()));
    let mut cases: Vec<&str> = records.iter().map(|record| record.case.as_str()).collect();
    cases.dedup();
    for case in cases {
        let cells: Vec<String> = metrics
            .iter()
            .map(|metric| {
                let found = records
                    .iter()
                    .find(|record| record.case == case && record.metric == *metric);
                found.map_or(String::new(), Record::shown)
            })
            .collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            println!("| {case} | {} |", cells.join(" | "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let record = Record::new("case", "time_us", &[3.0, 1.0, 2.0]);
        assert_eq!(
            (record.n, record.median, record.min, record.max),
            (3, 2.0, 1.0, 3.0)
        );
        assert_eq!(Record::new("case", "time_us", &[4.0, 1.0]).median, 2.5);
    }

    #[test]
    fn a_figure_is_shown_with_its_range() {
        let record = Record::new("case", "time_us", &[312.4, 9.876, 47.0]);
        assert_eq!(record.shown(), "47.0 (9.88–312)");
        assert_eq!(Record::new("case", "time_us", &[2.0]).shown(), "2.00");
    }

    #[test]
    fn a_ratio_is_there_only_with_a_reference() -> Result<(), serde_json::Error> {
        let reference = Record::new("case", "time_us", &[2.0]);
        let record = Record::new("case", "time_us", &[3.0]);
        assert!(!serde_json::to_string(&record)?.contains("ratio"));
        assert_eq!(record.against(&reference).ratio, Some(1.5));
        Ok(())
    }
}
