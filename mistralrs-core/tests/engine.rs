//! The engine from outside, over a model that is easy to reason about: whatever runs beside a request, whatever
//! is preempted, cached or cancelled, its tokens are those it gets alone, and nothing is left behind.

#![expect(clippy::unwrap_used, reason = "what a test cannot set up fails it")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use mistralrs_core::config::KvDType;
use mistralrs_core::loader::{LoadedModel, ModelDescription};
use mistralrs_core::models::{CausalLm, ModelShape, StepBatch, StepOutput};
use mistralrs_core::pooling::DeclaredPooling;
use mistralrs_core::request::{DryParams, XtcParams};
use mistralrs_core::{
    EngineConfig, EngineMetrics, FinishReason, GenerateRequest, LoadError, Model, Priority, Prompt, RequestError,
    SamplingParams, StopConditions, TextEvent, TextStream,
};
use mistralrs_paged_attn::{AttentionPlan, KvCache, KvLayout, RaggedBatch};
use mistralrs_telemetry::registry::Registry;
use tokenizers::Tokenizer;

#[path = "engine/draft_model.rs"]
mod draft_model;

const VOCAB_SIZE: usize = 64;
const EOS: u32 = 63;
const BLOCK_SIZE: usize = 4;
const CONTEXT: usize = 256;
const HEAD_SIZE: usize = 2;

/// Its KV is the token itself: keys say a token's position, values its id and kind. Logits are a hash of everything that attention
/// reads back through the block table, so that a wrong slot, a stale block, a block that was not copied or a mixed-up
/// table changes the output.
struct HashModel {
    shape: ModelShape,
    faults: Arc<Faults>,
}

/// What a test may do to a running model.
struct Faults {
    /// Step counter.
    num_steps: AtomicUsize,
    /// Tokens that a logit depends on; few make a text that repeats itself.
    memory: AtomicUsize,
    /// Panic in the next step.
    panic_next: AtomicBool,
    /// Panic in every step that has this token; no token has the initial value.
    panic_token: AtomicU32,
    /// Poison the logits of the next step's first row.
    nan_next: AtomicBool,
    /// Milliseconds that each step takes.
    step_ms: AtomicUsize,
    /// Whether a logit depends on which tokens were computed as a prompt's.
    tells_kinds: AtomicBool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            num_steps: AtomicUsize::new(0),
            memory: AtomicUsize::new(usize::MAX),
            panic_next: AtomicBool::new(false),
            panic_token: AtomicU32::new(u32::MAX),
            nan_next: AtomicBool::new(false),
            step_ms: AtomicUsize::new(0),
            tells_kinds: AtomicBool::new(false),
        }
    }
}

impl CausalLm for HashModel {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn computes_prompts_apart(&self) -> bool {
        true
    }

    fn forward(&mut self, batch: &StepBatch, kv: &mut KvCache) -> candle_core::Result<StepOutput> {
        self.faults.num_steps.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(self.faults.step_ms.load(Ordering::Relaxed) as u64));
        assert!(!self.faults.panic_next.swap(false, Ordering::Relaxed), "asked to panic");
        let panic_token = self.faults.panic_token.load(Ordering::Relaxed);
        assert!(!batch.token_ids.contains(&panic_token), "asked to panic at token {panic_token}");
        let pairs = |pair: &dyn Fn(usize) -> [f32; 2]| {
            let elements: Vec<f32> = (0..batch.token_ids.len()).flat_map(pair).collect();
            Tensor::from_vec(elements, (batch.token_ids.len(), HEAD_SIZE), &Device::Cpu).unwrap()
        };
        // A query of position p scores p * i - i * i / 2 at position i, which is highest at i = p.
        let keys = pairs(&|token| {
            let position = batch.positions[token] as f32;
            [position, -position * position / 2.0]
        });
        let is_generated =
            |token| token < batch.ragged.num_generated_tokens() && self.faults.tells_kinds.load(Ordering::Relaxed);
        let values = pairs(&|token| [batch.token_ids[token] as f32, f32::from(u8::from(is_generated(token)))]);
        kv.write(0, &keys, &values, &batch.ragged).unwrap();
        let mut logits = Vec::new();
        for &row in &batch.logit_rows {
            let sequence = batch.ragged.query_offsets.iter().rposition(|&offset| offset <= row).unwrap();
            // A guess sees what comes before it, not the guesses after it.
            let num_known = batch.positions[row as usize] as usize + 1;
            let memory = self.faults.memory.load(Ordering::Relaxed);
            let known = &read_back(kv, &batch.ragged, sequence)[num_known.saturating_sub(memory)..num_known];
            logits.extend(logits_after(known));
        }
        if self.faults.nan_next.swap(false, Ordering::Relaxed) {
            logits[0] = f32::NAN;
        }
        let logits = Tensor::from_vec(logits, (batch.logit_rows.len(), VOCAB_SIZE), &Device::Cpu)?;
        Ok(StepOutput {
            logits,
            hidden: Tensor::zeros((batch.hidden_rows.len(), HEAD_SIZE), DType::F32, &Device::Cpu)?,
        })
    }
}

/// A logit between 0 and 4 for each token.
fn logits_after(token_ids: &[u64]) -> impl Iterator<Item = f32> {
    let mix = |hash: u64, token_id: &u64| (hash ^ token_id).wrapping_mul(0x100_0000_01b3_u64);
    let hash = token_ids.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    (0..VOCAB_SIZE as u64).map(move |token_id| {
        let mixed = (hash ^ token_id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) as f32 / (1 << 22) as f32
    })
}

/// The token ids of `sequence` as the cache has them, each by a query of its position that sees nothing else.
fn read_back(kv: &KvCache, step: &RaggedBatch, sequence: usize) -> Vec<u64> {
    let num_tokens = step.context_len(sequence);
    let block_table = step.block_table(sequence);
    let slot =
        |position: usize| block_table[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32;
    let batch = RaggedBatch {
        query_offsets: vec![0, num_tokens as u32],
        context_lens: vec![num_tokens as u32],
        slot_mapping: (0..num_tokens).map(slot).collect(),
        block_tables: block_table.to_vec(),
        max_blocks: step.max_blocks,
        num_generated_sequences: 0,
    };
    let queries: Vec<f32> = (0..num_tokens).flat_map(|position| [position as f32, 1.0]).collect();
    let queries = Tensor::from_vec(queries, (num_tokens, HEAD_SIZE), &Device::Cpu).unwrap();
    let (mut plan, read) = (AttentionPlan::default(), queries.zeros_like().unwrap());
    kv.plan(&mut plan, &batch, 1).unwrap();
    kv.attend(0, &queries, &plan, 1000.0, &read).unwrap();
    let read = read.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    read.chunks_exact(HEAD_SIZE).map(|value| value[0] as u64 + VOCAB_SIZE as u64 * value[1] as u64).collect()
}

/// Token `i` is the letter of code `b'0' + i`, the last one the end token.
fn tokenizer() -> Tokenizer {
    let letter = |i: usize| if i == EOS as usize { "<end>".to_owned() } else { char::from(b'0' + i as u8).to_string() };
    let vocab: serde_json::Map<_, _> = (0..VOCAB_SIZE).map(|i| (letter(i), i.into())).collect();
    let special = serde_json::json!([{"id": EOS, "content": "<end>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}]);
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": special, "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

struct Bench {
    model: Model,
    faults: Arc<Faults>,
    registry: Registry,
}

fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 32,
        max_waiting_requests: 64,
        block_size: BLOCK_SIZE,
        kv_dtype: KvDType::F32,
        seed: Some(1),
        drain_timeout: Duration::from_secs(5),
        ..EngineConfig::default()
    }
}

/// An engine whose KV cache holds `num_blocks` blocks.
fn start(num_blocks: usize, config: EngineConfig) -> Bench {
    try_start(num_blocks, config).unwrap()
}

fn try_start(num_blocks: usize, mut config: EngineConfig) -> Result<Bench, LoadError> {
    let shape = ModelShape {
        num_layers: 1,
        hidden_size: HEAD_SIZE,
        num_kv_heads: 1,
        head_size: HEAD_SIZE,
        vocab_size: VOCAB_SIZE,
        max_position_embeddings: CONTEXT,
    };
    let faults = Arc::new(Faults::default());
    let loaded = LoadedModel {
        model: Box::new(HashModel { shape, faults: Arc::clone(&faults) }),
        tokenizer: tokenizer(),
        chat_template: None,
        eos_token_ids: BTreeSet::from([EOS]),
        pooling: DeclaredPooling::Unstated,
        description: ModelDescription::default(),
    };
    let registry = Registry::new();
    config.kv_memory_bytes = Some(num_blocks * layout(&config).block_bytes());
    let model = Model::start("hash".into(), loaded, &config, &EngineMetrics::register(&registry))?;
    Ok(Bench { model, faults, registry })
}

/// How a [`HashModel`] keeps its KV.
fn layout(config: &EngineConfig) -> KvLayout {
    KvLayout { num_layers: 1, num_kv_heads: 1, head_size: HEAD_SIZE, block_size: BLOCK_SIZE, dtype: config.kv_dtype }
}

fn request(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: Prompt::Tokens(prompt.to_vec()),
        num_choices: 1,
        max_tokens: Some(max_tokens),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        stop: StopConditions { ignore_eos: true, ..StopConditions::default() },
        logprobs: None,
        priority: Priority::default(),
        cache_salt: None,
    }
}

/// Text and end of every choice.
async fn collect(mut stream: TextStream) -> Vec<(String, String)> {
    let mut choices: Vec<(String, String)> = Vec::new();
    while let Some(event) = stream.next().await {
        let (choice, text, end) = match event {
            TextEvent::Delta { choice, text, .. } => (choice, text, String::new()),
            TextEvent::Finished { choice, reason, stop_string, num_completion_tokens } => {
                let at = stop_string.map_or_else(String::new, |stop| format!(" at {stop:?}"));
                (choice, String::new(), format!("{} {num_completion_tokens}{at}", reason.as_str()))
            }
            TextEvent::Refused { choice, error } => (choice, String::new(), format!("refused: {error}")),
            TextEvent::Failed { choice, message } => (choice, String::new(), format!("failed: {message}")),
        };
        choices.resize(choices.len().max(choice + 1), Default::default());
        choices[choice].0.push_str(&text);
        choices[choice].1.push_str(&end);
    }
    choices
}

async fn run(bench: &Bench, request: GenerateRequest) -> Vec<(String, String)> {
    collect(bench.model.generate(request).await.unwrap()).await
}

/// Waits until the engine has nothing left, and checks that it holds nothing.
async fn settle(bench: &Bench) {
    for _ in 0..2_000 {
        let status = bench.model.status();
        if status.num_running == 0 && status.num_waiting == 0 {
            assert_eq!(status.num_blocks_used, 0, "{status:?}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the engine did not settle: {:?}", bench.model.status());
}

fn counter(bench: &Bench, name: &str) -> u64 {
    let families = bench.registry.gather();
    let family = families.iter().find(|family| family.name() == name).unwrap();
    family.get_metric().iter().map(|metric| metric.get_counter().get_value() as u64).sum()
}

/// Requests of different lengths and samplers, some sharing a prefix.
fn mixed_requests() -> Vec<GenerateRequest> {
    let shared: Vec<u32> = (0..23).map(|i| i % 40).collect();
    let mut requests = Vec::new();
    for index in 0..24_usize {
        let own: Vec<u32> = (0..=index * 3).map(|i| ((i * 7 + index) % 60) as u32).collect();
        let prompt = if index % 3 == 0 { [shared.clone(), own].concat() } else { own };
        let mut request = request(&prompt, 5 + index * 2);
        if index % 2 == 0 {
            request.sampling = SamplingParams { seed: Some(index as u64), ..SamplingParams::default() };
        }
        if index % 4 == 2 {
            // Everything that remembers or draws: it belongs to the sequence, wherever and beside whom that runs.
            request.sampling.dry = Some(DryParams { allowed_length: 1, ..DryParams::default() });
            request.sampling.xtc = Some(XtcParams { probability: 0.5, threshold: 0.02 });
            request.sampling.typical_p = 0.9;
            request.sampling.repetition_penalty = 1.2;
            request.sampling.repetition_window = Some(10);
            request.stop =
                StopConditions { token_ids: (0..20).collect(), min_tokens: 5 + index, ..StopConditions::default() };
        }
        if index % 5 == 0 {
            request.num_choices = 3;
        }
        request.priority = Priority::new(index as i64 % 4 - 2).unwrap();
        requests.push(request);
    }
    requests
}

async fn together_as_alone(num_blocks: usize, enable_prefix_cache: bool) -> Bench {
    let alone = start(1_000, EngineConfig { enable_prefix_cache: false, ..config() });
    alone.faults.tells_kinds.store(true, Ordering::Relaxed);
    let mut expected = Vec::new();
    for request in mixed_requests() {
        expected.push(run(&alone, request).await);
    }
    let bench = start(num_blocks, EngineConfig { enable_prefix_cache, ..config() });
    bench.faults.tells_kinds.store(true, Ordering::Relaxed);
    let mut streams = Vec::new();
    for request in mixed_requests() {
        streams.push(tokio::spawn(collect(bench.model.generate(request).await.unwrap())));
    }
    for (index, stream) in streams.into_iter().enumerate() {
        assert_eq!(stream.await.unwrap(), expected[index], "request {index}");
    }
    settle(&bench).await;
    bench
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_was_an_answer_gives_what_it_gives_to_an_empty_cache() {
    let bench = start(1_000, config());
    bench.faults.tells_kinds.store(true, Ordering::Relaxed);
    let conversation = |bench: Bench| async move {
        let first = run(&bench, request(&[7; 21], 30)).await[0].0.clone();
        let prompt: Vec<u32> =
            [7; 21].into_iter().chain(first.bytes().map(|letter| u32::from(letter - b'0'))).collect();
        (run(&bench, request(&prompt, 10)).await, prompt, bench)
    };
    let (warm, prompt, bench) = conversation(bench).await;
    assert!(counter(&bench, "mistralrs_prefix_cache_hits_total") > 0, "the first prompt is still there");
    let cold = start(1_000, config());
    cold.faults.tells_kinds.store(true, Ordering::Relaxed);
    assert_eq!(run(&cold, request(&prompt, 10)).await, warm);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_together_give_what_each_gives_alone() {
    together_as_alone(1_000, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_together_give_what_each_gives_alone_under_preemption_and_prefix_hits() {
    let bench = together_as_alone(48, true).await;
    assert!(counter(&bench, "mistralrs_paged_preemptions_total") > 0, "48 blocks do not hold eight of these");
    assert!(counter(&bench, "mistralrs_prefix_cache_hits_total") > 0, "some prompts share 23 tokens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_together_give_what_each_gives_alone_under_preemption_without_a_prefix_cache() {
    let bench = together_as_alone(48, false).await;
    assert!(counter(&bench, "mistralrs_paged_preemptions_total") > 0, "48 blocks do not hold eight of these");
}

#[tokio::test]
async fn a_prompt_of_another_salt_is_not_shared() {
    let bench = start(100, config());
    let salted = |salt: &str| GenerateRequest { cache_salt: Some(salt.to_owned()), ..request(&[7; 21], 2) };
    let mut num_cached = Vec::new();
    for request in [request(&[7; 21], 2), salted("ann"), salted("ben"), salted("ann"), request(&[7; 21], 2)] {
        let mut stream = bench.model.generate(request).await.unwrap();
        while stream.next().await.is_some() {}
        num_cached.push(stream.usage().num_cached_tokens);
    }
    assert_eq!(num_cached, [0, 0, 0, 20, 20]);
    for salt in [String::new(), "a".repeat(257)] {
        let refused = bench.model.generate(salted(&salt)).await.err().unwrap().to_string();
        assert!(refused.contains(&format!("`cache_salt` has {} bytes; expected 1 to 256", salt.len())), "{refused}");
    }
}

#[tokio::test]
async fn an_urgent_request_is_served_before_those_that_wait() {
    let bench = start(100, EngineConfig { max_num_seqs: 1, ..config() });
    bench.faults.step_ms.store(5, Ordering::Relaxed);
    let mut streams = Vec::new();
    for priority in [0, 0, 0, -1] {
        let request = GenerateRequest { priority: Priority::new(priority).unwrap(), ..request(&[1], 3) };
        streams.push(bench.model.generate(request).await.unwrap());
        while bench.model.status().num_running == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let (order, ends) = std::sync::mpsc::sync_channel(4);
    let readers: Vec<_> = streams
        .into_iter()
        .enumerate()
        .map(|(index, stream)| {
            let order = order.clone();
            tokio::spawn(async move {
                collect(stream).await;
                order.send(index).unwrap();
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    drop(order);
    assert_eq!(ends.iter().collect::<Vec<_>>(), [0, 3, 1, 2]);
    let refused = Priority::new(1000).unwrap_err().to_string();
    assert_eq!(refused, "`priority` is 1000; expected -100 to 100, where lower is served earlier");
}

#[tokio::test]
async fn a_request_whose_turn_does_not_come_in_time_is_refused() {
    let timeout = Duration::from_millis(30);
    let bench = start(100, EngineConfig { max_num_seqs: 1, queue_timeout: Some(timeout), ..config() });
    bench.faults.step_ms.store(10, Ordering::Relaxed);
    let running = tokio::spawn(collect(bench.model.generate(request(&[1], 20)).await.unwrap()));
    while bench.model.status().num_running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let choices = GenerateRequest { num_choices: 2, ..request(&[2], 3) };
    let refused = collect(bench.model.generate(choices).await.unwrap()).await;
    for (text, end) in refused {
        assert_eq!(text, "");
        assert_eq!(end, "refused: the request waited 0 s for its turn, which is the limit; try again in 2 s");
    }
    assert_eq!(running.await.unwrap()[0].1, "length 20", "what runs is not held to the deadline");
    assert_eq!(counter(&bench, "mistralrs_sequences_rejected_total"), 2);
    settle(&bench).await;
}

#[tokio::test]
async fn later_choices_of_a_request_that_runs_are_not_held_to_the_deadline() {
    let timeout = Duration::from_millis(30);
    let bench = start(100, EngineConfig { max_num_seqs: 1, queue_timeout: Some(timeout), ..config() });
    bench.faults.step_ms.store(10, Ordering::Relaxed);
    let ends = run(&bench, GenerateRequest { num_choices: 3, ..request(&[2], 8) }).await;
    assert_eq!(ends.into_iter().map(|(_, end)| end).collect::<Vec<_>>(), ["length 8"; 3]);
}

#[tokio::test]
async fn kv_that_the_models_heads_do_not_fit_is_refused_with_what_would_work() {
    let error = try_start(10, EngineConfig { kv_dtype: KvDType::Q8_0, ..config() }).err().unwrap().to_string();
    assert!(error.contains("a multiple of 32, the model's is 2; it can have f16, bf16, f32"), "{error}");
    assert!(error.contains("--pa-cache-type"), "{error}");
}

#[tokio::test]
async fn a_repeated_prompt_reports_what_the_cache_gave() {
    let bench = start(100, config());
    let prompt: Vec<u32> = (0..33).collect();
    run(&bench, request(&prompt, 4)).await;
    let mut stream = bench.model.generate(request(&prompt, 4)).await.unwrap();
    while stream.next().await.is_some() {}
    assert_eq!(stream.usage().num_prompt_tokens, 33);
    assert_eq!(stream.usage().num_cached_tokens, 32);
    assert_eq!(stream.usage().num_completion_tokens, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_free_their_blocks_wherever_they_were() {
    let bench = start(60, config());
    bench.faults.step_ms.store(1, Ordering::Relaxed);
    let mut clients = Vec::new();
    for index in 0..60_u64 {
        let stream = bench.model.generate(request(&[1, 2, 3, index as u32], 100)).await.unwrap();
        clients.push(tokio::spawn(async move {
            let mut stream = stream;
            // Some leave before the first event, some in the middle; all before the end.
            for _ in 0..index % 20 {
                stream.next().await;
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    settle(&bench).await;
    assert_eq!(run(&bench, request(&[5], 3)).await[0].1, "length 3");
}

#[tokio::test]
async fn a_full_queue_is_refused_with_a_time_to_come_back() {
    let bench = start(100, EngineConfig { max_waiting_requests: 4, max_num_seqs: 1, ..config() });
    bench.faults.step_ms.store(20, Ordering::Relaxed);
    let mut streams = Vec::new();
    let refused = loop {
        match bench.model.generate(request(&[1], 200)).await {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 10);
    };
    assert!(matches!(refused, RequestError::QueueFull { num_waiting: 4, retry_after_seconds: 1.. }), "{refused:?}");
    drop(streams);
    settle(&bench).await;
    assert_eq!(counter(&bench, "mistralrs_sequences_rejected_total"), 1);
}

#[tokio::test]
async fn what_can_never_fit_is_refused_at_once_with_the_numbers() {
    let bench = start(10, config());
    let refused = |error: Result<TextStream, RequestError>| error.err().expect("refused").to_string();
    let message = refused(bench.model.generate(request(&[1; 30], 12)).await);
    assert!(message.contains("30 tokens and 12 more") && message.contains("the KV cache is 41"), "{message}");
    let message = refused(bench.model.generate(request(&[1; 200], 100)).await);
    assert!(message.contains("the context length is 256"), "{message}");
    let message = refused(bench.model.generate(request(&[], 1)).await);
    assert!(message.contains("empty"), "{message}");
    let message = refused(bench.model.generate(request(&[VOCAB_SIZE as u32], 1)).await);
    assert!(message.contains("vocabulary of 64"), "{message}");
    // The largest that fits does run.
    assert_eq!(run(&bench, request(&[1; 30], 11)).await[0].1, "length 11");
}

#[tokio::test]
async fn a_panic_of_the_model_ends_the_request_and_not_the_engine() {
    let bench = start(100, config());
    bench.faults.step_ms.store(2, Ordering::Relaxed);
    let running = tokio::spawn(collect(bench.model.generate(request(&[1, 2], 200)).await.unwrap()));
    while bench.model.status().num_running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.faults.panic_next.store(true, Ordering::Relaxed);
    let ended = running.await.unwrap();
    assert!(ended[0].1.contains("failed: the model panicked: asked to panic"), "{ended:?}");
    assert_eq!(run(&bench, request(&[3], 3)).await[0].1, "length 3");
    settle(&bench).await;
}

#[tokio::test]
async fn a_panic_of_the_model_ends_none_of_those_that_ran_beside_its_request() {
    let bench = start(100, config());
    let others = [request(&[1, 2], 25), request(&[3, 4, 5], 25)];
    let mut alone = Vec::new();
    for other in &others {
        alone.push(run(&bench, other.clone()).await);
    }
    let is_said = |token_id: u32| alone.iter().any(|ends| ends[0].0.contains(char::from(b'0' + token_id as u8)));
    let panic_token = (6..EOS).find(|token_id| !is_said(*token_id)).expect("no answer has every token");
    bench.faults.panic_token.store(panic_token, Ordering::Relaxed);
    bench.faults.step_ms.store(20, Ordering::Relaxed);
    let mut running = Vec::new();
    for other in others {
        running.push(tokio::spawn(collect(bench.model.generate(other).await.unwrap())));
    }
    while bench.model.status().num_running < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ended = run(&bench, request(&[6, panic_token], 5)).await;
    let message = format!("failed: the model panicked: asked to panic at token {panic_token}");
    assert!(ended[0].1.contains(&message), "{ended:?}");
    assert_eq!(bench.model.status().num_running, 2, "it ended beside the others");
    for (together, alone) in running.into_iter().zip(alone) {
        assert_eq!(together.await.unwrap(), alone);
    }
    settle(&bench).await;
}

#[tokio::test]
async fn logits_that_are_not_numbers_fail_one_sequence_only() {
    let bench = start(100, config());
    bench.faults.step_ms.store(2, Ordering::Relaxed);
    let streams: Vec<_> = {
        let mut streams = Vec::new();
        for token_id in 0..3 {
            streams.push(tokio::spawn(collect(bench.model.generate(request(&[token_id], 60)).await.unwrap())));
        }
        streams
    };
    while bench.model.status().num_running < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.faults.nan_next.store(true, Ordering::Relaxed);
    let mut ends = Vec::new();
    for stream in streams {
        ends.push(stream.await.unwrap().remove(0).1);
    }
    assert_eq!(ends.iter().filter(|end| end.contains("failed")).count(), 1, "{ends:?}");
    assert_eq!(ends.iter().filter(|end| *end == "length 60").count(), 2, "{ends:?}");
}

#[tokio::test]
async fn end_tokens_stop_tokens_and_stop_strings_end_a_choice() {
    let bench = start(100, config());
    let full = run(&bench, request(&[9, 8, 7], 40)).await.remove(0).0;
    let mut with_string = request(&[9, 8, 7], 40);
    let stop = full[10..12].to_owned();
    with_string.stop.strings = vec![stop.clone()];
    let (text, end) = run(&bench, with_string).await.remove(0);
    assert_eq!(text, full[..full.find(&stop).unwrap()]);
    assert_eq!(end, format!("stop {} at {stop:?}", text.len() + 2), "the tokens of the stop string were generated");

    let stop_token = u32::from(full.as_bytes()[5] - b'0');
    let mut with_token = request(&[9, 8, 7], 40);
    with_token.stop.token_ids = vec![stop_token];
    let (text, end) = run(&bench, with_token).await.remove(0);
    assert_eq!(text, full[..full.find(char::from(b'0' + stop_token as u8)).unwrap()]);
    assert_eq!(end, format!("stop {}", text.len() + 1));
    settle(&bench).await;
}

#[tokio::test]
async fn nothing_but_length_ends_a_choice_before_it_has_min_tokens() {
    let bench = start(100, config());
    // Any end would do: every token is one, or the model's own.
    let mut sampled = request(&[9, 8, 7], 40);
    sampled.stop = StopConditions { token_ids: (0..40).collect(), ..StopConditions::default() };
    let end = |choices: Vec<(String, String)>| choices[0].1.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
    let soon = end(run(&bench, sampled.clone()).await);
    assert!(soon < 12, "{soon}");
    sampled.stop.min_tokens = 12;
    let later = run(&bench, sampled.clone()).await;
    assert!(later[0].0.len() >= 12 && end(later.clone()) > 12, "{later:?}");

    let full = run(&bench, request(&[9, 8, 7], 40)).await.remove(0).0;
    let mut with_string = request(&[9, 8, 7], 40);
    with_string.stop.strings = vec![full[2..4].to_owned()];
    with_string.stop.min_tokens = 4;
    let (text, _) = run(&bench, with_string.clone()).await.remove(0);
    let next = full[4..].find(&full[2..4]).map_or(40, |at| 4 + at);
    assert_eq!(text, full[..next], "the first occurrence is ordinary text");
    with_string.stop.min_tokens = 3;
    assert_eq!(run(&bench, with_string.clone()).await[0].0, full[..2]);

    with_string.stop.min_tokens = 41;
    let refused = bench.model.generate(with_string).await.err().expect("refused").to_string();
    assert_eq!(refused, "min_tokens is 41; it must be at most max_tokens, which is 40 here");
    settle(&bench).await;
}

#[tokio::test]
async fn seeds_reproduce_and_choices_differ() {
    let bench = start(200, config());
    let mut sampled = request(&[4, 5, 6], 30);
    sampled.sampling = SamplingParams { seed: Some(99), ..SamplingParams::default() };
    sampled.num_choices = 3;
    let first = run(&bench, sampled.clone()).await;
    assert_eq!(first, run(&bench, sampled.clone()).await);
    let unshared = start(200, EngineConfig { enable_prefix_cache: false, ..config() });
    assert_eq!(first, run(&unshared, sampled).await);
    assert!(first[0] != first[1] && first[1] != first[2]);
}

/// A text that repeats itself, with or without guesses: `(choices, tokens guessed, guesses that came true, steps)`.
async fn repetitive(max_draft_tokens: usize, sampling: SamplingParams) -> (Vec<(String, String)>, u64, u64, usize) {
    let bench = start(200, EngineConfig { max_draft_tokens, ..config() });
    bench.faults.memory.store(1, Ordering::Relaxed);
    bench.faults.step_ms.store(1, Ordering::Relaxed);
    let mut request = request(&[3, 1, 4], 150);
    request.sampling = sampling;
    let choices = run(&bench, request).await;
    settle(&bench).await;
    let count = |name: &str| counter(&bench, &format!("mistralrs_speculative_{name}_tokens_total"));
    (choices, count("draft"), count("accepted"), bench.faults.num_steps.load(Ordering::Relaxed))
}

#[tokio::test]
async fn guesses_that_come_true_save_a_step_each_and_change_no_answer() {
    let sharp = |seed| SamplingParams { temperature: 0.02, seed: Some(seed), ..SamplingParams::default() };
    let penalized = SamplingParams { temperature: 0.0, frequency_penalty: 0.01, ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    for sampling in [greedy, sharp(1), sharp(2), penalized, SamplingParams { seed: Some(3), ..Default::default() }] {
        let (plain, _, _, num_steps) = repetitive(0, sampling.clone()).await;
        let (guessed, num_drafted, num_accepted, num_fewer) = repetitive(8, sampling.clone()).await;
        assert_eq!(guessed, plain, "{sampling:?}");
        assert_eq!(num_fewer + num_accepted as usize, num_steps, "each accepted guess saves a step");
        assert!(num_accepted <= num_drafted);
        if sampling.temperature == 0.0 && sampling.frequency_penalty == 0.0 {
            assert!(num_accepted > 0, "a greedy text of one token's memory is a cycle");
        }
    }
}

#[tokio::test]
async fn a_stop_token_within_a_guess_ends_the_answer_there() {
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let (plain, ..) = repetitive(0, greedy).await;
    let last = plain[0].0.bytes().last().unwrap() - b'0';
    for max_draft_tokens in [0, 8] {
        let bench = start(200, EngineConfig { max_draft_tokens, ..config() });
        bench.faults.memory.store(1, Ordering::Relaxed);
        // The prompt has seen the cycle, so the very first guesses reach the stop token.
        let prompt: Vec<u32> = plain[0].0.bytes().map(|byte| u32::from(byte - b'0')).collect();
        let mut request = request(&prompt[..148], 100);
        request.stop.token_ids = vec![u32::from(last)];
        let (_, end) = run(&bench, request).await.remove(0);
        assert_eq!(end, "stop 2", "with up to {max_draft_tokens} guesses");
        settle(&bench).await;
    }
}

#[tokio::test]
async fn shutdown_lets_running_requests_finish_and_refuses_new_ones() {
    let bench = start(100, config());
    bench.faults.step_ms.store(2, Ordering::Relaxed);
    let running = tokio::spawn(collect(bench.model.generate(request(&[1], 50)).await.unwrap()));
    while bench.model.status().num_running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.model.shutdown().await;
    assert_eq!(running.await.unwrap()[0].1, "length 50");
    assert_eq!(bench.model.generate(request(&[1], 1)).await.err(), Some(RequestError::ShuttingDown));
}

#[tokio::test]
async fn shutdown_cancels_what_outlasts_the_drain_timeout() {
    let bench = start(100, EngineConfig { drain_timeout: Duration::from_millis(30), ..config() });
    bench.faults.step_ms.store(10, Ordering::Relaxed);
    let running = tokio::spawn(collect(bench.model.generate(request(&[1], 200)).await.unwrap()));
    while bench.model.status().num_running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.model.shutdown().await;
    assert!(running.await.unwrap()[0].1.contains("failed: the server is shutting down"));
}

#[tokio::test]
async fn an_idle_engine_takes_no_steps() {
    let bench = start(100, config());
    run(&bench, request(&[1], 3)).await;
    settle(&bench).await;
    let before = bench.faults.num_steps.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bench.faults.num_steps.load(Ordering::Relaxed), before);
}

#[tokio::test]
async fn ended_sequences_are_counted_by_reason() {
    let bench = start(100, config());
    run(&bench, request(&[1], 3)).await;
    drop(bench.model.generate(request(&[1], 100)).await.unwrap());
    settle(&bench).await;
    assert_eq!(counter(&bench, "mistralrs_sequences_completed_total"), 2);
    assert_eq!(FinishReason::Cancelled.as_str(), "cancelled");
}
