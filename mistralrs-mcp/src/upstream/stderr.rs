//! A child's stderr goes to our log, with its name and within limits. It is always read: a child that writes to a full
//! pipe stands still.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::time::Instant;

use crate::config::UpstreamId;

/// The rest of a longer line is dropped.
const MAX_LINE_BYTES: usize = 1024;
/// Lines logged in one [`WINDOW`]; more are counted only.
const MAX_LINES_PER_WINDOW: u32 = 50;
const WINDOW: Duration = Duration::from_secs(1);
/// Package runners end with where their log is; the reason stands above.
const NUM_LAST_LINES: usize = 3;

/// What a child wrote last: often the reason why it ended.
#[derive(Clone, Default)]
pub(super) struct LastWords(Arc<ArcSwapOption<String>>);

impl LastWords {
    pub fn get(&self) -> Option<Arc<String>> {
        self.0.load_full()
    }
}

/// Reads `stderr` to its end.
pub(super) async fn drain(upstream: UpstreamId, stderr: impl AsyncRead + Unpin, last_words: LastWords) {
    let mut reader = BufReader::new(stderr);
    let mut limiter = LineLimiter::default();
    let mut line = Vec::with_capacity(MAX_LINE_BYTES);
    let mut last_lines = VecDeque::with_capacity(NUM_LAST_LINES + 1);
    while let Ok(true) = read_line(&mut reader, &mut line).await {
        let text = printable(&line);
        if text.is_empty() {
            continue;
        }
        if let Some(num_dropped) = limiter.admit(Instant::now()) {
            if num_dropped > 0 {
                tracing::warn!(%upstream, num_dropped, "stderr lines were dropped: too many at once");
            }
            tracing::info!(%upstream, "stderr: {text}");
        }
        last_lines.push_back(text);
        if last_lines.len() > NUM_LAST_LINES {
            last_lines.pop_front();
        }
        last_words.0.store(Some(Arc::new(last_lines.make_contiguous().join(" / "))));
    }
}

/// Reads one line, of which the first [`MAX_LINE_BYTES`] are kept. `false` at the end.
async fn read_line(reader: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    let mut is_anything = false;
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(is_anything);
        }
        is_anything = true;
        let newline = available.iter().position(|byte| *byte == b'\n');
        let part = &available[..newline.unwrap_or(available.len())];
        line.extend_from_slice(&part[..part.len().min(MAX_LINE_BYTES - line.len())]);
        let taken = newline.map_or(available.len(), |index| index + 1);
        reader.consume(taken);
        if newline.is_some() {
            return Ok(true);
        }
    }
}

/// Without control characters, which could forge log lines or steer a terminal.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.trim().to_owned()
}

/// So many lines in each window; decides without a clock of its own.
#[derive(Default)]
struct LineLimiter {
    window_start: Option<Instant>,
    num_in_window: u32,
    num_dropped: u64,
}

impl LineLimiter {
    /// Whether a line may be logged now, and how many were dropped since the last one that was.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let is_window_over = self.window_start.is_none_or(|start| now.saturating_duration_since(start) >= WINDOW);
        if is_window_over {
            self.window_start = Some(now);
            self.num_in_window = 0;
        }
        if self.num_in_window == MAX_LINES_PER_WINDOW {
            self.num_dropped += 1;
            return None;
        }
        self.num_in_window += 1;
        Some(std::mem::take(&mut self.num_dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_lines_are_cut_and_control_characters_removed() {
        let text = format!("\x1b[31mred\r\n\n{}\nlast", "x".repeat(5000));
        let mut reader = BufReader::with_capacity(7, text.as_bytes());
        let (mut line, mut lines) = (Vec::new(), Vec::new());
        while read_line(&mut reader, &mut line).await.unwrap() {
            lines.push(printable(&line));
        }
        assert_eq!(lines, ["[31mred", "", &"x".repeat(MAX_LINE_BYTES), "last"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_counted_and_not_logged() {
        let mut limiter = LineLimiter::default();
        let logged = (0..1000).filter(|_| limiter.admit(Instant::now()).is_some()).count();
        assert_eq!(logged, MAX_LINES_PER_WINDOW as usize);
        tokio::time::advance(WINDOW).await;
        assert_eq!(limiter.admit(Instant::now()), Some(1000 - u64::from(MAX_LINES_PER_WINDOW)));
        assert_eq!(limiter.admit(Instant::now()), Some(0));
    }

    #[tokio::test]
    async fn the_last_lines_are_kept() {
        let last_words = LastWords::default();
        let stderr = "start\nnotice\nnpm error canceled\n\n  see the log\n".as_bytes();
        drain(UpstreamId::new("u"), stderr, last_words.clone()).await;
        assert_eq!(*last_words.get().unwrap(), "notice / npm error canceled / see the log");
    }
}
