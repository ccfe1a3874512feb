//! The block manager under a model checker, which decides at each lock whose turn it is: two lock orders that cross
//! deadlock here, and a count that was read under one lock and used under another goes wrong.

use shuttle::sync::Arc;
use shuttle::thread;

use super::*;

const BLOCK_SIZE: usize = 2;
/// Schedules per test: random ones, of a few dozen turns each, find a planted crossing of the two locks in the first ten.
const NUM_SCHEDULES: usize = 3_000;

/// What the engine does with one prompt, over all lock paths: adopt, grow, publish, fork, release.
fn run_prompt(manager: &BlockManager, tokens: &[u32]) {
    let hashes = manager.hash_blocks(tokens, &PrefixSalt::default());
    let mut table = manager.adopt_prefix(&hashes);
    if manager.grow(&mut table, tokens.len()).is_ok() {
        for (index, hash) in hashes.iter().enumerate() {
            manager.publish(&table, index, *hash);
        }
        if let Ok((forked, _)) = manager.fork(&table, tokens.len() - 1) {
            manager.release(forked);
        }
    }
    manager.release(table);
}

fn check_usage(manager: &BlockManager) {
    let usage = manager.usage();
    assert!(usage.num_used + usage.num_cached <= usage.num_total, "{usage:?}");
    assert!(usage.num_hits <= usage.num_lookups, "{usage:?}");
}

#[test]
fn schedules_of_an_engine_and_two_readers_keep_every_count() {
    shuttle::check_random(
        || {
            // Three blocks and prompts of three and two: most schedules evict.
            let manager = Arc::new(BlockManager::new(3, BLOCK_SIZE, true));
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let manager = Arc::clone(&manager);
                    thread::spawn(move || {
                        check_usage(&manager);
                        let found = manager.find_prefix(&manager.hash_blocks(&[1, 2, 3, 4], &PrefixSalt::default()));
                        assert!(found.num_unheld_blocks <= found.num_blocks);
                        check_usage(&manager);
                    })
                })
                .collect();
            for prompt in [&[1, 2, 3, 4, 5][..], &[9, 9, 9], &[1, 2, 3, 4]] {
                run_prompt(&manager, prompt);
            }
            for reader in readers {
                reader.join().unwrap();
            }
            manager.check_invariants(&[]);
        },
        NUM_SCHEDULES,
    );
}

/// There is one engine per manager. Nothing in the manager depends on it.
#[test]
fn schedules_of_two_engines_over_one_pool_leak_nothing() {
    shuttle::check_random(
        || {
            let manager = Arc::new(BlockManager::new(4, BLOCK_SIZE, true));
            let engines: Vec<_> = [[1, 2, 3, 4, 5], [1, 2, 3, 7, 7]]
                .into_iter()
                .map(|prompt| {
                    let manager = Arc::clone(&manager);
                    thread::spawn(move || run_prompt(&manager, &prompt))
                })
                .collect();
            for engine in engines {
                engine.join().unwrap();
            }
            manager.check_invariants(&[]);
            assert_eq!(manager.usage().num_used, 0);
        },
        NUM_SCHEDULES,
    );
}
