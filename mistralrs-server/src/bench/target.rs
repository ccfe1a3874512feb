//! What a load is put on, and what comes back from it.

use std::time::Duration;

use tokio::time::Instant;

/// Something that answers prompts with streams of text.
pub(super) trait Target: Send + Sync + 'static {
    /// A prompt, ready to be sent.
    type Prompt: Send;

    /// Makes prompt `index`; not part of what is measured.
    fn prompt(&self, index: u64) -> impl Future<Output = Result<Self::Prompt, Failure>> + Send;

    /// Sends a prompt and reads its answer to the end, noting each piece of text when it comes.
    fn answer(
        &self,
        prompt: Self::Prompt,
        pieces: &mut Pieces,
    ) -> impl Future<Output = Result<TokensUsed, Failure>> + Send;
}

/// When pieces of one answer came. A piece is a token, but for tokens that complete no character.
#[derive(Debug, Default)]
pub(super) struct Pieces(Vec<Instant>);

impl Pieces {
    pub fn arrived(&mut self) {
        self.0.push(Instant::now());
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// What the target says that one answer used, in tokens; `None` where it says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TokensUsed {
    pub prompt: Option<u64>,
    pub cached: Option<u64>,
    pub completion: Option<u64>,
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The target had no room for it.
    Refused(String),
    /// Anything else.
    Failed(String),
}

/// One answered request.
#[derive(Debug)]
pub(super) struct Answer {
    /// From its arrival to the first piece; `None` if there was none.
    pub time_to_first: Option<Duration>,
    /// When the first piece came.
    pub first_at: Option<Instant>,
    /// From each piece to the next.
    pub gaps: Vec<Duration>,
    pub used: TokensUsed,
}

impl Answer {
    pub fn new(arrived_at: Instant, pieces: &Pieces, used: TokensUsed) -> Self {
        let Pieces(times) = pieces;
        Self {
            time_to_first: times.first().map(|first| *first - arrived_at),
            first_at: times.first().copied(),
            gaps: times.windows(2).map(|pair| pair[1] - pair[0]).collect(),
            used: TokensUsed { completion: used.completion.or(Some(times.len() as u64)), ..used },
        }
    }

    /// From the first piece to the last.
    pub fn decode_time(&self) -> Duration {
        self.gaps.iter().sum()
    }

    /// When the last piece came.
    pub fn last_at(&self) -> Option<Instant> {
        self.first_at.map(|first| first + self.decode_time())
    }

    /// Tokens that came after `begin`, `end` included, every piece standing for as many as the others.
    pub fn tokens_between(&self, begin: Instant, end: Instant) -> f64 {
        let Some(first) = self.first_at else { return 0.0 };
        let later = self.gaps.iter().scan(first, |now, gap| {
            *now += *gap;
            Some(*now)
        });
        let num_pieces = std::iter::once(first).chain(later).filter(|at| *at > begin && *at <= end).count();
        let tokens_per_piece = self.used.completion.unwrap_or(0) as f64 / (self.gaps.len() + 1) as f64;
        num_pieces as f64 * tokens_per_piece
    }
}
