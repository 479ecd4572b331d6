//! Medians, ratios, tables.

use super::subject::{Memory, Subject};

/// One figure for each row, subject and round. The first subject is ours.
pub struct Series {
    subjects: Vec<&'static str>,
    rows: Vec<(String, Vec<Vec<f64>>)>,
}

impl Series {
    pub fn new(subjects: &[Subject]) -> Self {
        Self { subjects: subjects.iter().map(|subject| subject.name).collect(), rows: Vec::new() }
    }

    /// Takes in the next round's figure.
    pub fn add(&mut self, row: &str, subject: usize, value: f64) {
        let index = self.rows.iter().position(|(name, _)| name == row).unwrap_or_else(|| {
            self.rows.push((row.into(), vec![Vec::new(); self.subjects.len()]));
            self.rows.len() - 1
        });
        self.rows[index].1[subject].push(value);
    }

    /// Medians of each subject, and of our ratio to it, round by round, with the middle half of the ratios.
    pub fn print(&self, title: &str) {
        println!("\n### {title}\n");
        let ratios = self.subjects[1..].iter().map(|name| format!("ratio to {name} (middle half)"));
        let header: Vec<_> = self.subjects.iter().map(|name| (*name).to_owned()).chain(ratios).collect();
        println!("| | {} |\n|---{}|", header.join(" | "), "|---".repeat(header.len()));
        for (name, values) in &self.rows {
            let mut cells: Vec<_> = values.iter().map(|values| figure(median(&mut values.clone()))).collect();
            for other in &values[1..] {
                let mut ratios: Vec<_> = values[0].iter().zip(other).map(|(ours, other)| ours / other).collect();
                let middle = median(&mut ratios);
                let (low, high) = (ratios[ratios.len() / 4], ratios[ratios.len() * 3 / 4]);
                cells.push(format!("**{middle:.2}** ({low:.2}–{high:.2})"));
            }
            println!("| {name} | {} |", cells.join(" | "));
        }
    }
}

fn figure(value: f64) -> String {
    if value < 1_000.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// Sorts, and takes the middle one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Resident, and of it anonymous.
#[allow(clippy::cast_precision_loss, reason = "memory fits a double")]
pub fn mebibytes(memory: &Memory) -> String {
    format!("{:.1} ({:.1})", memory.resident as f64 / 1024.0, memory.anonymous as f64 / 1024.0)
}
