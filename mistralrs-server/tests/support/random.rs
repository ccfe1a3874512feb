//! Numbers that look random and are the same in every run.

/// Xorshift by Marsaglia (2003), 64 bits.
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed but 0.
    pub fn new(seed: u64) -> Self {
        assert!(seed != 0, "xorshift stays at 0");
        Self(seed)
    }

    /// Uniform below `bound`, as good as a test needs it.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
