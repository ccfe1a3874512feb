use std::sync::Arc;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const BLOCK_SIZE: usize = 4;

fn manager(num_blocks: usize) -> BlockManager {
    BlockManager::new(num_blocks, BLOCK_SIZE, true)
}

/// A sequence as the scheduler keeps one: tokens, their hashes, blocks, and how many blocks are published.
#[derive(Default)]
struct Sequence {
    tokens: Vec<u32>,
    hashes: Vec<PrefixHash>,
    table: BlockTable,
    num_published: usize,
}

impl Sequence {
    fn admit(manager: &BlockManager, tokens: &[u32]) -> Self {
        let hashes = manager.hash_blocks(tokens, &PrefixSalt::default());
        let table = manager.adopt_prefix(&hashes);
        Self { tokens: tokens.to_vec(), num_published: table.blocks().len(), hashes, table }
    }

    fn grow(&mut self, manager: &BlockManager) -> Result<(), OutOfBlocks> {
        manager.grow(&mut self.table, self.tokens.len())
    }

    fn publish(&mut self, manager: &BlockManager) {
        manager.extend_hashes(&mut self.hashes, (&self.tokens, usize::MAX), &PrefixSalt::default());
        let num_full = self.hashes.len().min(self.table.blocks().len());
        for index in self.num_published..num_full {
            manager.publish(&self.table, index, self.hashes[index]);
        }
        self.num_published = self.num_published.max(num_full);
    }
}

fn ids(table: &BlockTable) -> Vec<u32> {
    table.blocks().iter().map(|block| block.0).collect()
}

/// Computes `tokens` to the end and releases it, leaving its full blocks cached.
fn run(manager: &BlockManager, tokens: &[u32]) {
    let mut sequence = Sequence::admit(manager, tokens);
    sequence.grow(manager).unwrap();
    sequence.publish(manager);
    manager.release(sequence.table);
}

#[test]
fn growing_takes_whole_blocks_or_changes_nothing() {
    let manager = manager(3);
    let mut table = BlockTable::default();
    manager.grow(&mut table, 5).unwrap();
    assert_eq!(ids(&table), [0, 1]);
    manager.grow(&mut table, 8).unwrap();
    assert_eq!(ids(&table), [0, 1], "the second block still has room");
    let error = manager.grow(&mut table, 17).unwrap_err();
    assert_eq!(error, OutOfBlocks { num_needed: 3, num_free: 1 });
    assert_eq!(error.to_string(), "out of KV blocks: 3 needed, 1 free");
    assert_eq!(ids(&table), [0, 1]);
    manager.check_invariants(&[&table]);
    manager.release(table);
    assert_eq!(manager.usage().num_available(), 3);
}

#[test]
fn the_longest_cached_prefix_is_shared() {
    let manager = manager(8);
    run(&manager, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!((manager.usage().num_used, manager.usage().num_cached), (0, 2), "the partial block is not kept");

    let first = Sequence::admit(&manager, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0]);
    let second = Sequence::admit(&manager, &[1, 2, 3, 4, 9, 9, 9, 9]);
    assert_eq!((ids(&first.table), ids(&second.table)), (vec![0, 1], vec![0]));
    manager.check_invariants(&[&first.table, &second.table]);
    let usage = manager.usage();
    assert_eq!((usage.num_used, usage.num_cached), (2, 0));
    assert_eq!((usage.num_lookups, usage.num_hits), (2 + 3 + 2, 3));
    manager.release(first.table);
    manager.check_invariants(&[&second.table]);
    manager.release(second.table);
    manager.check_invariants(&[]);
}

#[test]
fn a_chain_is_evicted_from_its_end_so_that_what_stays_can_be_found() {
    let manager = manager(4);
    let tokens: Vec<u32> = (0..16).collect();
    run(&manager, &tokens);
    let mut other = BlockTable::default();
    manager.grow(&mut other, 2 * BLOCK_SIZE).unwrap();
    assert_eq!(ids(&other), [2, 3], "the last two blocks of the chain");
    let sequence = Sequence::admit(&manager, &tokens);
    assert_eq!(ids(&sequence.table), [0, 1]);
    assert_eq!(manager.usage().num_evictions, 2);
    manager.check_invariants(&[&other, &sequence.table]);
    manager.release(other);
    manager.release(sequence.table);
}

#[test]
fn equal_contents_computed_twice_are_kept_once() {
    let manager = manager(4);
    let tokens = [1, 2, 3, 4];
    let (mut first, mut second) = (Sequence::admit(&manager, &tokens), Sequence::admit(&manager, &tokens));
    for sequence in [&mut first, &mut second] {
        sequence.grow(&manager).unwrap();
        sequence.publish(&manager);
    }
    manager.check_invariants(&[&first.table, &second.table]);
    manager.release(second.table);
    manager.release(first.table);
    assert_eq!(manager.usage().num_cached, 1);
    let third = Sequence::admit(&manager, &tokens);
    assert_eq!(ids(&third.table), [0]);
    manager.release(third.table);
    manager.check_invariants(&[]);
}

#[test]
fn nothing_is_shared_when_the_prefix_cache_is_off() {
    let manager = BlockManager::new(2, BLOCK_SIZE, false);
    run(&manager, &[1, 2, 3, 4]);
    assert!(manager.hash_blocks(&[1, 2, 3, 4], &PrefixSalt::default()).is_empty());
    assert_eq!(manager.usage(), BlockUsage { num_total: 2, ..BlockUsage::default() });
    manager.check_invariants(&[]);
}

#[test]
fn a_fork_shares_full_blocks_and_copies_the_last() {
    let manager = manager(6);
    let mut prompt = Sequence::admit(&manager, &(0..10).collect::<Vec<_>>());
    prompt.grow(&manager).unwrap();
    let (mut partial, copy) = manager.fork(&prompt.table, 9).unwrap();
    assert_eq!((ids(&prompt.table), ids(&partial)), (vec![0, 1, 2], vec![0, 1, 3]));
    assert_eq!(copy, Some(BlockCopy { from: BlockId(2), to: BlockId(3) }));
    let (full, copy) = manager.fork(&prompt.table, 8).unwrap();
    assert_eq!((ids(&full), copy), (vec![0, 1], None));
    manager.check_invariants(&[&prompt.table, &partial, &full]);
    manager.grow(&mut partial, 6 * BLOCK_SIZE).unwrap_err();
    manager.grow(&mut partial, 5 * BLOCK_SIZE).unwrap();
    assert_eq!(manager.fork(&prompt.table, 9).unwrap_err(), OutOfBlocks { num_needed: 1, num_free: 0 });
    manager.check_invariants(&[&prompt.table, &partial, &full]);
    for table in [prompt.table, partial, full] {
        manager.release(table);
    }
    manager.check_invariants(&[]);
}

#[test]
fn looking_for_a_prefix_changes_nothing() {
    let manager = manager(4);
    run(&manager, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let hashes = manager.hash_blocks(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9], &PrefixSalt::default());
    let usage = manager.usage();
    assert_eq!(manager.find_prefix(&hashes), CachedPrefix { num_blocks: 2, num_unheld_blocks: 2 });
    assert_eq!(manager.usage(), usage);
    let first = manager.adopt_prefix(&hashes[..1]);
    assert_eq!(manager.find_prefix(&hashes), CachedPrefix { num_blocks: 2, num_unheld_blocks: 1 });
    manager.release(first);
}

#[test]
fn scrapes_and_growth_go_on_at_once() {
    let manager = Arc::new(manager(16));
    let workers: Vec<_> = (0..4_u32)
        .map(|worker| {
            let manager = Arc::clone(&manager);
            std::thread::spawn(move || {
                for round in 0..500 {
                    run(&manager, &[worker % 2, round % 7, 3, 4, 5]);
                    let usage = manager.usage();
                    assert!(usage.num_used + usage.num_cached <= usage.num_total);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    manager.check_invariants(&[]);
    assert_eq!(manager.usage().num_used, 0);
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    /// A prompt out of few families, so that prefixes are shared often.
    Admit {
        family: u32,
        num_tokens: usize,
    },
    Append {
        sequence: usize,
        num_tokens: usize,
    },
    Publish {
        sequence: usize,
    },
    Fork {
        sequence: usize,
        num_tokens: usize,
    },
    Release {
        sequence: usize,
    },
}

fn apply(manager: &BlockManager, running: &mut Vec<Sequence>, operation: Operation) {
    match operation {
        Operation::Admit { family, num_tokens } => {
            // Families agree on their first two blocks in pairs.
            let token = |position: usize| if position < 2 * BLOCK_SIZE { family / 2 } else { family };
            let tokens: Vec<u32> = (0..num_tokens).map(token).collect();
            let mut sequence = Sequence::admit(manager, &tokens);
            match sequence.grow(manager) {
                Ok(()) => running.push(sequence),
                Err(error) => {
                    assert!(error.num_free < error.num_needed);
                    manager.release(sequence.table);
                }
            }
        }
        _ if running.is_empty() => {}
        Operation::Append { sequence, num_tokens } => {
            let index = sequence % running.len();
            let sequence = &mut running[index];
            let num_before = sequence.table.blocks().len();
            sequence.tokens.extend((0..num_tokens).map(|token| token as u32 % 3));
            if sequence.grow(manager).is_err() {
                assert_eq!(sequence.table.blocks().len(), num_before, "all or nothing");
                manager.release(running.swap_remove(index).table);
            }
        }
        Operation::Publish { sequence } => {
            let index = sequence % running.len();
            running[index].publish(manager);
        }
        Operation::Fork { sequence, num_tokens } => {
            let parent = &running[sequence % running.len()];
            let tokens = parent.tokens[..num_tokens.min(parent.tokens.len())].to_vec();
            if let Ok((table, copy)) = manager.fork(&parent.table, tokens.len()) {
                assert_eq!(copy.is_some(), !tokens.len().is_multiple_of(BLOCK_SIZE));
                let hashes = manager.hash_blocks(&tokens, &PrefixSalt::default());
                running.push(Sequence { tokens, hashes, table, num_published: 0 });
            }
        }
        Operation::Release { sequence } => manager.release(running.swap_remove(sequence % running.len()).table),
    }
    manager.check_invariants(&running.iter().map(|sequence| &sequence.table).collect::<Vec<_>>());
}

fn finish(manager: &BlockManager, running: Vec<Sequence>) {
    for sequence in running {
        manager.release(sequence.table);
    }
    manager.check_invariants(&[]);
    assert_eq!(manager.usage().num_used, 0, "all blocks are free or cached in the end");
}

#[test]
fn a_hundred_thousand_random_operations_keep_the_invariants() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let manager = manager(24);
    let mut running = Vec::new();
    for _ in 0..100_000 {
        let sequence = rng.random_range(0..64);
        let operation = match rng.random_range(0..9) {
            0..=1 => Operation::Admit { family: rng.random_range(0..12), num_tokens: rng.random_range(1..32) },
            2..=3 => Operation::Append { sequence, num_tokens: rng.random_range(1..6) },
            4..=5 => Operation::Publish { sequence },
            6 => Operation::Fork { sequence, num_tokens: rng.random_range(0..32) },
            _ => Operation::Release { sequence },
        };
        apply(&manager, &mut running, operation);
    }
    let usage = manager.usage();
    assert!(usage.num_hits > 10_000 && usage.num_evictions > 10_000, "the run shares and evicts: {usage:?}");
    finish(&manager, running);
}

fn operations() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (0..6_u32, 1..24_usize).prop_map(|(family, num_tokens)| Operation::Admit { family, num_tokens }),
        (0..8_usize, 1..9_usize).prop_map(|(sequence, num_tokens)| Operation::Append { sequence, num_tokens }),
        (0..8_usize).prop_map(|sequence| Operation::Publish { sequence }),
        (0..8_usize, 0..24_usize).prop_map(|(sequence, num_tokens)| Operation::Fork { sequence, num_tokens }),
        (0..8_usize).prop_map(|sequence| Operation::Release { sequence }),
    ]
}

proptest! {
    #[test]
    fn any_order_of_operations_keeps_the_invariants(
        operations in prop::collection::vec(operations(), 1..60),
        num_blocks in 1..12_usize,
    ) {
        let manager = manager(num_blocks);
        let mut running = Vec::new();
        for operation in operations {
            apply(&manager, &mut running, operation);
        }
        finish(&manager, running);
    }
}
