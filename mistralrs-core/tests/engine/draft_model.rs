//! An engine whose tokens are guessed by a second model: answers are those without it, whatever it guesses, and its
//! guesses are right as often as it is.

use std::collections::BTreeMap;
use std::path::Path;

use mistralrs_core::config::ModelSource;
use mistralrs_core::{Draft, DraftCost, loader};

use super::*;

/// Cheap enough to guess on whatever comes of it.
const CHEAP: DraftCost = DraftCost::Fixed(0.01);

/// A [`HashModel`] that is wrong about the likeliest token after so many of a hundred texts.
struct Careless {
    model: HashModel,
    wrong_percent: u64,
    /// The most tokens it ever computed at once.
    max_tokens: Arc<AtomicUsize>,
}

impl CausalLm for Careless {
    fn shape(&self) -> &ModelShape {
        self.model.shape()
    }

    fn forward(&mut self, batch: &StepBatch, kv: &mut KvCache) -> candle_core::Result<StepOutput> {
        self.max_tokens.fetch_max(batch.token_ids.len(), Ordering::Relaxed);
        let output = self.model.forward(batch, kv)?;
        let mut rows: Vec<Vec<f32>> = output.logits.to_vec2()?;
        for row in &mut rows {
            let best = (0..VOCAB_SIZE).max_by(|one, other| row[*one].total_cmp(&row[*other])).unwrap();
            let hash =
                row.iter().fold(7_u64, |hash, logit| (hash ^ u64::from(logit.to_bits())).wrapping_mul(0x9e37_79b1));
            if (hash >> 20) % 100 < self.wrong_percent {
                row[best] = -1.0;
            }
        }
        let logits = Tensor::from_vec(rows.concat(), (rows.len(), VOCAB_SIZE), &Device::Cpu)?;
        Ok(StepOutput { logits, ..output })
    }
}

/// How the second model differs from the first.
struct Second {
    wrong_percent: u64,
    context: usize,
    cost: DraftCost,
    tokenizer: Tokenizer,
    step_ms: usize,
}

impl Second {
    fn wrong(wrong_percent: u64) -> Self {
        Self { wrong_percent, context: CONTEXT, cost: CHEAP, tokenizer: tokenizer(), step_ms: 0 }
    }
}

struct Pair {
    bench: Bench,
    draft_faults: Arc<Faults>,
    max_draft_batch: Arc<AtomicUsize>,
}

fn hash_model(context: usize, faults: &Arc<Faults>) -> HashModel {
    let shape = ModelShape {
        num_layers: 1,
        num_kv_heads: 1,
        head_size: HEAD_SIZE,
        hidden_size: HEAD_SIZE,
        vocab_size: VOCAB_SIZE,
        max_position_embeddings: context,
    };
    HashModel { shape, faults: Arc::clone(faults) }
}

fn in_memory(model: Box<dyn CausalLm>, tokenizer: Tokenizer) -> LoadedModel {
    let description = ModelDescription::default();
    LoadedModel {
        model,
        tokenizer,
        chat_template: None,
        eos_token_ids: BTreeSet::from([EOS]),
        pooling: DeclaredPooling::Unstated,
        description,
    }
}

/// An engine with `num_blocks` blocks for each of both models.
fn try_pair(num_blocks: usize, second: Second, mut config: EngineConfig) -> Result<Pair, LoadError> {
    config.kv_memory_bytes = Some(2 * num_blocks * layout(&config).block_bytes());
    let (faults, draft_faults, max_draft_batch): (Arc<Faults>, Arc<Faults>, Arc<AtomicUsize>) = Default::default();
    draft_faults.step_ms.store(second.step_ms, Ordering::Relaxed);
    let careless = Careless {
        model: hash_model(second.context, &draft_faults),
        wrong_percent: second.wrong_percent,
        max_tokens: Arc::clone(&max_draft_batch),
    };
    let draft = Draft { loaded: in_memory(Box::new(careless), second.tokenizer), cost: second.cost };
    let loaded = in_memory(Box::new(hash_model(CONTEXT, &faults)), tokenizer());
    let registry = Registry::new();
    let metrics = EngineMetrics::register(&registry);
    let model = Model::start_with_draft("hash".into(), loaded, Some(draft), &config, &metrics)?;
    Ok(Pair { bench: Bench { model, faults, registry }, draft_faults, max_draft_batch })
}

fn pair(num_blocks: usize, second: Second, config: EngineConfig) -> Pair {
    try_pair(num_blocks, second, config).unwrap()
}

/// How many guesses `source` made, and how many came true.
fn guesses(bench: &Bench, source: &str) -> (u64, u64) {
    let families = bench.registry.gather();
    let count = |name: &str| {
        let name = format!("mistralrs_speculative_{name}_tokens_total");
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let is_asked_for = |metric: &&prometheus::proto::Metric| {
            metric.get_label().iter().any(|label| label.name() == "source" && label.value() == source)
        };
        family.get_metric().iter().find(is_asked_for).unwrap().get_counter().get_value() as u64
    };
    (count("draft"), count("accepted"))
}

/// Waits until the engine has nothing left, and checks that its draft model holds nothing either.
async fn settle_both(bench: &Bench) {
    settle(bench).await;
    let held = || {
        let families = bench.registry.gather();
        let family = families.iter().find(|family| family.name() == "mistralrs_speculative_draft_blocks_used").unwrap();
        family.get_metric()[0].get_gauge().get_value()
    };
    for _ in 0..2_000 {
        if held() == 0.0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the draft model still holds {} blocks", held());
}

async fn all_at_once(bench: &Bench, requests: Vec<GenerateRequest>) -> Vec<Vec<(String, String)>> {
    let mut streams = Vec::new();
    for request in requests {
        streams.push(tokio::spawn(collect(bench.model.generate(request).await.unwrap())));
    }
    let mut answers = Vec::new();
    for stream in streams {
        answers.push(stream.await.unwrap());
    }
    answers
}

async fn without_draft_model(requests: Vec<GenerateRequest>) -> Vec<Vec<(String, String)>> {
    let plain = start(1_000, EngineConfig { enable_prefix_cache: false, max_draft_tokens: 0, ..config() });
    let mut answers = Vec::new();
    for request in requests {
        answers.push(run(&plain, request).await);
    }
    answers
}

/// Greedy answers of different lengths after prompts that share beginnings.
fn greedy_requests() -> Vec<GenerateRequest> {
    let plain = |mut request: GenerateRequest| {
        request.sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        request.stop = StopConditions { ignore_eos: true, ..StopConditions::default() };
        request.max_tokens = request.max_tokens.map(|max_tokens| max_tokens + 20);
        request
    };
    mixed_requests().into_iter().map(plain).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draft_model_equal_to_the_model_is_always_right_alone_in_a_batch_preempted_or_with_prefix_hits() {
    let expected = without_draft_model(greedy_requests()).await;
    for (num_blocks, enable_prefix_cache) in [(1_000, false), (60, true), (60, false)] {
        let Pair { bench, .. } = pair(num_blocks, Second::wrong(0), EngineConfig { enable_prefix_cache, ..config() });
        assert_eq!(all_at_once(&bench, greedy_requests()).await, expected);
        let preemptions = counter(&bench, "mistralrs_paged_preemptions_total");
        assert_eq!(preemptions > 0, num_blocks == 60, "{preemptions}");
        let (num_drafted, num_accepted) = guesses(&bench, "draft_model");
        assert!(num_drafted > 50, "{num_drafted}");
        assert_eq!(num_accepted, num_drafted, "{num_blocks} blocks, prefix cache: {enable_prefix_cache}");
        for (request, expected) in greedy_requests().into_iter().zip(&expected) {
            assert_eq!(&run(&bench, request).await, expected);
        }
        let (num_drafted, num_accepted) = guesses(&bench, "draft_model");
        assert_eq!(num_accepted, num_drafted);
        settle_both(&bench).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_those_without_a_draft_model_whatever_it_guesses() {
    let expected = without_draft_model(mixed_requests()).await;
    for (wrong_percent, num_blocks, enable_prefix_cache) in
        [(30, 1_000, true), (30, 48, true), (60, 48, false), (100, 1_000, false)]
    {
        let Pair { bench, .. } =
            pair(num_blocks, Second::wrong(wrong_percent), EngineConfig { enable_prefix_cache, ..config() });
        assert_eq!(all_at_once(&bench, mixed_requests()).await, expected, "together");
        for (request, expected) in mixed_requests().into_iter().zip(&expected) {
            assert_eq!(&run(&bench, request).await, expected, "alone");
        }
        let (num_drafted, num_accepted) = guesses(&bench, "draft_model");
        assert!(num_accepted < num_drafted, "{num_accepted} of {num_drafted}");
        assert!(num_accepted > 0 || wrong_percent == 100, "{num_accepted} of {num_drafted}");
        settle_both(&bench).await;
    }
}

#[tokio::test]
async fn each_guess_that_comes_true_saves_a_step() {
    let Pair { bench, draft_faults, .. } = pair(200, Second::wrong(40), config());
    run(&bench, request(&[3, 1, 4], 150)).await;
    settle_both(&bench).await;
    let (num_drafted, num_accepted) = guesses(&bench, "draft_model");
    let (_, num_looked_up) = guesses(&bench, "prompt_lookup");
    // 150 tokens, one of them by the step of the prompt; and one step to warm up.
    let num_steps = bench.faults.num_steps.load(Ordering::Relaxed) as u64;
    assert_eq!(num_steps + num_accepted + num_looked_up, 151);
    let num_draft_steps = draft_faults.num_steps.load(Ordering::Relaxed) as u64;
    assert!(num_draft_steps >= num_drafted && num_accepted > 30, "{num_accepted} of {num_drafted}");
}

/// Counts of `[from][to]` in sampled texts of a model whose next token depends on the last one only.
async fn sampled_transitions(pair: &Pair, sampling: &SamplingParams) -> Vec<Vec<f64>> {
    let mut counts = vec![vec![0.0; VOCAB_SIZE]; VOCAB_SIZE];
    for seed in 0..10 {
        let mut request = request(&[seed as u32], 40);
        request.sampling = SamplingParams { seed: Some(seed), ..sampling.clone() };
        request.num_choices = 48;
        for (text, _) in run(&pair.bench, request).await {
            let mut from = seed as usize;
            for byte in text.bytes() {
                let to = usize::from(byte - b'0');
                counts[from][to] += 1.0;
                from = to;
            }
        }
    }
    counts
}

/// How many standard deviations chi-squared of `counts` is above what it is for samples of these probabilities.
fn excess(counts: &[Vec<f64>], probabilities: impl Fn(usize) -> Vec<f64>) -> f64 {
    let (mut chi_squared, mut degrees) = (0.0, 0.0);
    for (from, counts) in counts.iter().enumerate() {
        let total: f64 = counts.iter().sum();
        // Cells in which little is expected are taken together, as the approximation asks for.
        let (mut rest_expected, mut rest_count, mut num_cells) = (0.0, 0.0, 0.0);
        for (count, probability) in counts.iter().zip(probabilities(from)) {
            let expected = total * probability;
            if expected < 5.0 {
                rest_expected += expected;
                rest_count += count;
            } else {
                chi_squared += (count - expected).powi(2) / expected;
                num_cells += 1.0;
            }
        }
        if rest_expected >= 5.0 {
            chi_squared += (rest_count - rest_expected).powi(2) / rest_expected;
            num_cells += 1.0;
        }
        degrees += f64::max(num_cells - 1.0, 0.0);
    }
    assert!(degrees > 100.0, "{degrees}");
    (chi_squared - degrees) / (2.0 * degrees).sqrt()
}

/// The model's distribution after `from`, without the end token.
fn softmax(from: usize, temperature: f64) -> Vec<f64> {
    let mut weights: Vec<f64> =
        logits_after(&[from as u64]).map(|logit| (f64::from(logit) / temperature).exp()).collect();
    weights[EOS as usize] = 0.0;
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sampled_texts_have_the_models_distribution_however_often_guesses_are_wrong() {
    let sampling =
        SamplingParams { temperature: 0.8, logit_bias: BTreeMap::from([(EOS, -100.0)]), ..SamplingParams::default() };
    let config = EngineConfig { max_num_seqs: 48, max_num_batched_tokens: 256, ..config() };
    let pair = pair(2_000, Second::wrong(50), config);
    for faults in [&pair.bench.faults, &pair.draft_faults] {
        faults.memory.store(1, Ordering::Relaxed);
    }
    let counts = sampled_transitions(&pair, &sampling).await;
    assert_eq!(counts.iter().flatten().sum::<f64>() as u64, 10 * 48 * 40);
    let (num_drafted, num_accepted) = guesses(&pair.bench, "draft_model");
    assert!(num_drafted > 3_000, "{num_drafted}");
    assert!(num_accepted > 100 && num_accepted < num_drafted / 2, "{num_accepted} of {num_drafted}");
    let found = excess(&counts, |from| softmax(from, 0.8));
    assert!(found.abs() < 4.0, "{found} standard deviations from the model's distribution");
    // What a sampler would do that takes one guess in ten unseen.
    let careless = |from| {
        let model = softmax(from, 0.8);
        let mut probabilities: Vec<f64> = model.iter().map(|probability| 0.9 * probability).collect();
        let likeliest = (0..VOCAB_SIZE).max_by(|one, other| model[*one].total_cmp(&model[*other]));
        probabilities[likeliest.unwrap()] += 0.1;
        probabilities
    };
    let other = excess(&counts, careless);
    assert!(other > 8.0, "{other}: this test could not tell");
}

#[tokio::test]
async fn a_fault_of_the_draft_model_ends_its_guesses_and_no_answer() {
    let expected = without_draft_model(vec![request(&[9, 8, 7], 100)]).await.remove(0);
    for is_panic in [true, false] {
        let Pair { bench, draft_faults, .. } = pair(200, Second::wrong(0), config());
        let fault = if is_panic { &draft_faults.panic_next } else { &draft_faults.nan_next };
        fault.store(true, Ordering::Relaxed);
        assert_eq!(run(&bench, request(&[9, 8, 7], 100)).await, expected);
        assert_eq!(guesses(&bench, "draft_model"), (0, 0));
        let num_steps = draft_faults.num_steps.load(Ordering::Relaxed);
        assert_eq!(run(&bench, request(&[9, 8, 7], 100)).await, expected);
        assert_eq!(draft_faults.num_steps.load(Ordering::Relaxed), num_steps, "it is not asked again");
        settle_both(&bench).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_free_the_draft_models_blocks_too() {
    let Pair { bench, .. } = pair(300, Second::wrong(20), config());
    bench.faults.step_ms.store(1, Ordering::Relaxed);
    let mut clients = Vec::new();
    for index in 0..40_u64 {
        let stream = bench.model.generate(request(&[1, 2, 3, index as u32], 100)).await.unwrap();
        clients.push(tokio::spawn(async move {
            let mut stream = stream;
            for _ in 0..index {
                stream.next().await;
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    settle_both(&bench).await;
    assert!(guesses(&bench, "draft_model").0 > 0);
}

#[tokio::test]
async fn a_draft_model_without_blocks_for_everybody_guesses_for_some() {
    // The choices share the prompt's 15 blocks and have 25 each at the end; the draft model's do not share them, without a
    // prefix cache. It catches up with all in one step, so that they grow together.
    let prompt: Vec<u32> = (0..60).collect();
    let choices = || GenerateRequest { num_choices: 8, ..request(&prompt, 100) };
    let config = || EngineConfig { enable_prefix_cache: false, max_num_batched_tokens: 2048, ..config() };
    let expected = without_draft_model(vec![choices()]).await.remove(0);
    let mut num_accepted = Vec::new();
    for num_blocks in [225, 1_000] {
        let Pair { bench, .. } = pair(num_blocks, Second::wrong(0), config());
        assert_eq!(run(&bench, choices()).await, expected, "with {num_blocks} blocks");
        assert_eq!(counter(&bench, "mistralrs_paged_preemptions_total"), 0, "the model itself has enough");
        num_accepted.push(guesses(&bench, "draft_model").1);
        settle_both(&bench).await;
    }
    assert!(0 < num_accepted[0] && num_accepted[0] < num_accepted[1], "{num_accepted:?}");
}

#[tokio::test]
async fn nothing_is_guessed_beyond_the_draft_models_context() {
    let expected = without_draft_model(vec![request(&[5; 10], 100)]).await.remove(0);
    let Pair { bench, .. } = pair(200, Second { context: 40, ..Second::wrong(0) }, config());
    assert_eq!(run(&bench, request(&[5; 10], 100)).await, expected);
    let (num_drafted, num_accepted) = guesses(&bench, "draft_model");
    assert_eq!(num_drafted, num_accepted);
    // The last text it can read has 40 tokens, of which 10 were the prompt and one came with it.
    assert!((20..=30).contains(&num_accepted), "{num_accepted}");
    settle_both(&bench).await;
}

#[tokio::test]
async fn a_long_prompt_is_caught_up_with_in_pieces() {
    let prompt: Vec<u32> = (0..150).map(|i| i * 7 % 61).collect();
    let expected = without_draft_model(vec![request(&prompt, 60)]).await.remove(0);
    let Pair { bench, max_draft_batch, .. } = pair(200, Second::wrong(0), config());
    assert_eq!(run(&bench, request(&prompt, 60)).await, expected);
    // A quarter of 32, or two for each of eight sequences.
    assert_eq!(max_draft_batch.load(Ordering::Relaxed), 16);
    let (num_drafted, num_accepted) = guesses(&bench, "draft_model");
    assert_eq!(num_drafted, num_accepted);
    assert!(num_accepted > 30, "{num_accepted}");
}

#[tokio::test]
async fn a_draft_model_is_asked_while_its_steps_are_cheap_and_left_alone_if_they_are_not() {
    let mut shares = Vec::new();
    for draft_ms in [0, 4] {
        let second = Second { cost: DraftCost::Measured, step_ms: draft_ms, ..Second::wrong(0) };
        let Pair { bench, draft_faults, .. } = pair(200, second, config());
        bench.faults.step_ms.store(4, Ordering::Relaxed);
        run(&bench, request(&[3, 1, 4], 200)).await;
        shares.push((guesses(&bench, "draft_model").0, draft_faults.num_steps.load(Ordering::Relaxed)));
    }
    assert!(shares[0].0 > 100, "{shares:?}: guesses and steps of the draft model, cheap and dear");
    // Now and then it is tried again, and a busy machine makes it look cheap.
    assert!(shares[1].1 * 3 < shares[0].1, "{shares:?}: guesses and steps of the draft model, cheap and dear");
}

#[tokio::test]
async fn a_draft_model_with_other_tokens_is_refused_with_what_differs() {
    let refused = |tokenizer: Tokenizer| {
        let second = Second { tokenizer, ..Second::wrong(0) };
        try_pair(100, second, config()).err().unwrap().to_string()
    };
    let mut json: serde_json::Value = serde_json::from_str(&tokenizer().to_string(false).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    vocab.insert("0".into(), 1.into());
    vocab.insert("1".into(), 0.into());
    let swapped = Tokenizer::from_bytes(json.to_string()).unwrap();
    assert_eq!(
        refused(swapped),
        "--draft-model: its vocabulary is not the model's: 2 of 64 tokens differ, the first is 0: ordinary \"1\" \
         there, ordinary \"0\" in the model's"
    );
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    vocab.insert("extra".into(), 64.into());
    let longer = Tokenizer::from_bytes(json.to_string()).unwrap();
    assert_eq!(
        refused(longer),
        "--draft-model: its vocabulary is not the model's: it has 65 tokens, the model's has 64"
    );
}

#[tokio::test]
async fn checkpoints_of_other_formats_guess_for_each_other() {
    let load = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        loader::load(&ModelSource { path, id: None, chat_template: None, packed_cache: None }).unwrap()
    };
    for (model, draft, min_right) in [
        ("tiny-llama", "tiny-llama", 1.0),
        ("tiny-llama-f32.gguf", "tiny-llama", 0.9),
        ("tiny-llama", "tiny-llama-f32.gguf", 0.9),
    ] {
        let registry = Registry::new();
        let draft = Draft { loaded: load(draft), cost: CHEAP };
        let config = EngineConfig { kv_memory_bytes: Some(16 << 20), ..config() };
        let metrics = EngineMetrics::register(&registry);
        let model = Model::start_with_draft("tiny".into(), load(model), Some(draft), &config, &metrics).unwrap();
        let bench = Bench { model, faults: Arc::default(), registry };
        let requests = || (0..6).map(|index| request(&(index..60 + index * 9).collect::<Vec<_>>(), 100)).collect();
        all_at_once(&bench, requests()).await;
        let (num_drafted, num_accepted) = guesses(&bench, "draft_model");
        let right = num_accepted as f64 / num_drafted as f64;
        assert!(num_accepted > 50 && right >= min_right, "{num_accepted} of {num_drafted}");
        settle_both(&bench).await;
    }
}
