//! How far loading is: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Lines a load writes where there is no terminal: enough to see it move, few enough for a log.
const NUM_LINES: u64 = 4;

/// Shows the progress of one load.
pub struct LoadProgress {
    name: String,
    total_bytes: u64,
    num_bytes: AtomicU64,
    /// `None`: plain lines.
    bar: Option<ProgressBar>,
}

impl LoadProgress {
    /// A load of `total_bytes` of the model called `name`: a bar if stderr is a terminal, log lines otherwise.
    pub fn new(name: &str, total_bytes: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "loading {msg} [{bar:30}] {bytes}/{total_bytes} {eta}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr());
            bar.with_style(style.progress_chars("=> ")).with_message(name.to_owned())
        });
        if bar.is_none() {
            tracing::info!(model = name, megabytes = total_bytes / 1_000_000, "loading");
        }
        Self { name: name.to_owned(), total_bytes, num_bytes: AtomicU64::new(0), bar }
    }

    /// Shows nothing: for tests and benches.
    pub fn hidden() -> Self {
        let bar = Some(ProgressBar::hidden());
        Self { name: String::new(), total_bytes: 0, num_bytes: AtomicU64::new(0), bar }
    }

    /// `num_bytes` more are in memory.
    pub fn advance(&self, num_bytes: u64) {
        if let Some(bar) = &self.bar {
            return bar.inc(num_bytes);
        }
        let before = self.num_bytes.fetch_add(num_bytes, Ordering::Relaxed);
        if let Some(percent) = crossed(before, before + num_bytes, self.total_bytes) {
            tracing::info!(model = self.name, percent, "loading");
        }
    }

    /// Removes the bar; the caller says that the model is there.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The percentage to report when the count goes from `before` to `after` of `total`.
fn crossed(before: u64, after: u64, total: u64) -> Option<u64> {
    let line = |num_bytes: u64| (num_bytes * NUM_LINES).checked_div(total).unwrap_or(0);
    (line(after) > line(before) && after < total).then(|| line(after) * 100 / NUM_LINES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_at_each_quarter_but_the_last() {
        let mut lines = Vec::new();
        for before in (0..100).step_by(10) {
            lines.extend(crossed(before, before + 10, 100));
        }
        assert_eq!(lines, [25, 50, 75]);
        assert_eq!(crossed(0, 80, 100), Some(75), "one big tensor may cross several");
        assert_eq!(crossed(0, 0, 0), None);
    }
}
