//! One continuation as the scheduler sees it: token ids, how far KV has come, which blocks it holds.

use mistralrs_paged_attn::{BlockTable, PrefixHash, PrefixSalt};

use crate::request::Priority;

/// Numbers sequences in order of arrival: a smaller id came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Whether a sequence shares KV with others of the same beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixSharing {
    /// It adopts what others have computed, and others what it has.
    Shared,
    /// It computes each of its tokens, since each is of use for more than its KV; and so would those do that are like it,
    /// which is why it leaves nothing for them.
    Private,
}

/// A sequence from admission to its end. The scheduler owns it; the engine appends tokens.
#[derive(Debug)]
pub struct Sequence {
    /// Which.
    pub id: SequenceId,
    /// The first choice of the same request, if this is a later one: its prompt's blocks are worth waiting for.
    pub leader: Option<SequenceId>,
    /// Its class.
    pub priority: Priority,
    /// Prompt, then output.
    pub token_ids: Vec<u32>,
    /// How many of `token_ids` are prompt.
    pub num_prompt_tokens: usize,
    /// How many `token_ids` can become at most; `usize::MAX` where nobody knows.
    pub max_num_tokens: usize,
    /// Of `token_ids`, how many have KV.
    pub num_computed: usize,
    /// Of the prompt, how many came from the prefix cache when the sequence was last admitted.
    pub num_cached: usize,
    /// Blocks with its KV, in token order.
    pub block_table: BlockTable,
    /// Chained hashes of full blocks, as far as they are known; empty without a prefix cache.
    pub block_hashes: Vec<PrefixHash>,
    /// Keeps its blocks apart from those of other adapters and tenants.
    pub salt: PrefixSalt,
    /// Whether KV goes to and comes from the prefix cache.
    pub prefix_sharing: PrefixSharing,
    /// How many of the table's blocks are in the prefix cache.
    pub num_published: usize,
    /// Guesses of the tokens to come, for this step: they run beside the newest token and are verified. Written by the
    /// engine before each plan, cut by the scheduler to what fits.
    pub draft: Vec<u32>,
    /// Whether it has lost its blocks before: what it holds next is computed for the second time at least.
    pub was_preempted: bool,
}

impl Sequence {
    /// A sequence that has not run, of the default class, salt and length. `block_hashes` are those of the prompt's
    /// full blocks.
    pub fn new(id: SequenceId, leader: Option<SequenceId>, prompt: Vec<u32>, block_hashes: Vec<PrefixHash>) -> Self {
        let num_prompt_tokens = prompt.len();
        Self {
            id,
            leader,
            priority: Priority::default(),
            token_ids: prompt,
            num_prompt_tokens,
            max_num_tokens: usize::MAX,
            num_computed: 0,
            num_cached: 0,
            block_table: BlockTable::default(),
            block_hashes,
            salt: PrefixSalt::default(),
            prefix_sharing: PrefixSharing::Shared,
            num_published: 0,
            draft: Vec::new(),
            was_preempted: false,
        }
    }

    /// Tokens generated so far.
    pub fn num_output_tokens(&self) -> usize {
        self.token_ids.len() - self.num_prompt_tokens
    }

    /// Tokens without KV. One: a decode; more: a prefill.
    pub fn num_uncomputed(&self) -> usize {
        self.token_ids.len() - self.num_computed
    }

    /// The token at `position`, known or guessed.
    ///
    /// # Panics
    /// If there is neither.
    pub fn token_at(&self, position: usize) -> u32 {
        self.token_ids.get(position).copied().unwrap_or_else(|| self.draft[position - self.token_ids.len()])
    }

    /// Whether the next token to compute is one of the prompt's.
    pub fn is_in_prompt(&self) -> bool {
        self.num_computed < self.num_prompt_tokens
    }

    /// Whether only the newest token lacks KV.
    pub fn is_decoding(&self) -> bool {
        self.num_computed > 0 && self.num_uncomputed() == 1
    }
}
