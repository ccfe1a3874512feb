use crate::*;
use candle_core::{Device, Tensor};
use std::time::Instant;

fn batch(layout: &KvLayout, seqs: usize, ctx: usize, q: usize) -> (RaggedBatch, usize) {
    let per = ctx.div_ceil(layout.block_size);
    let mut b = RaggedBatch { query_offsets: vec![0], max_blocks: per, ..Default::default() };
    for s in 0..seqs {
        // interleave blocks among sequences
        let table: Vec<u32> = (0..per).map(|i| (i * seqs + s) as u32).collect();
        for p in ctx - q..ctx {
            b.slot_mapping
                .push(table[p / layout.block_size] * layout.block_size as u32 + (p % layout.block_size) as u32);
        }
        b.query_offsets.push(b.slot_mapping.len() as u32);
        b.context_lens.push(ctx as u32);
        b.block_tables.extend(table);
    }
    (b, per * seqs)
}

#[test]
#[ignore]
fn perf() {
    let block_size: usize = 16;
    println!("threads {}", super::num_threads());
    for dtype in [KvDType::F16] {
        for (h, k, d) in [(9, 3, 64), (32, 8, 64), (32, 8, 128)] {
            let layout = KvLayout { num_layers: 1, num_kv_heads: k, head_size: d, block_size, dtype };
            for (s, ctx, q) in [(32, 512, 1), (8, 4096, 1)] {
                if (d == 128) != (s == 32) && d == 128 {
                    continue;
                }
                let (full, n) = batch(&layout, s, ctx, ctx);
                let mut cache = KvCache::new(layout, n).unwrap();
                let kv = Tensor::rand(-1f32, 1f32, (s * ctx, k, d), &Device::Cpu).unwrap();
                cache.write(0, &kv, &kv, &full).unwrap();
                let t = Instant::now();
                cache.write(0, &kv, &kv, &full).unwrap();
                let wr = t.elapsed().as_secs_f64() / (s * ctx) as f64;
                let (b, _) = batch(&layout, s, ctx, q);
                let query = Tensor::rand(-1f32, 1f32, (s * q, h, d), &Device::Cpu).unwrap();
                let big = vec![1u64; (s * ctx * k * d * 4) / 8];
                for pref in [0, 9, 0, 9, 0, 9] {
                    
                    let mut reps = 0u32;
                    let mut best = f64::MAX;
                    let start = Instant::now();
                    while reps < 20 || start.elapsed().as_secs_f64() < 1.0 {
                        let t = Instant::now();
                        if pref == 9 {
                            std::hint::black_box(big.iter().fold(0u64, |a, b| a.wrapping_add(*b)));
                        } else {
                            cache.attend(0, &query, &b, 0.125).unwrap();
                        }
                        best = best.min(t.elapsed().as_secs_f64());
                        reps += 1;
                    }
                    let bytes = (s * ctx * k * d * 2 * dtype.size_in_bytes()) as f64;
                    let pairs = if q == 1 { s * ctx } else { (0..q).map(|i| ctx - i).sum() };
                    let flops = (pairs * h * d * 4) as f64;
                    println!(
                        "{dtype:?} H{h} K{k} D{d} S{s} ctx{ctx} q{q}: {:9.1} us {:6.1} GB/s {:6.1} GF/s  write {:.0} ns/token ({reps})",
                        best * 1e6,
                        bytes / best / 1e9,
                        flops / best / 1e9,
                        wr * 1e9
                    );
                    println!("   pref {pref}");
                }
            }
        }
    }
}

fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}
