//! Embeddings through the engine: against sentence-transformers, and the same bits whatever else happens.

use std::time::Duration;

use mistralrs_core::config::{KvDType, ModelSource};
use mistralrs_core::{
    EmbedError, EmbedRequest, EngineConfig, EngineMetrics, GenerateRequest, Model, Pooling, Priority, Prompt,
    RequestError, SamplingParams, StopConditions, TextStream,
};
use mistralrs_paged_attn::KvLayout;
use mistralrs_telemetry::registry::Registry;

use crate::reference::Reference;
use crate::runner::fixture;

const HIDDEN_SIZE: usize = 64;
const BLOCK_SIZE: usize = 4;
const POOLINGS: [(&str, Pooling); 3] = [("mean", Pooling::Mean), ("last", Pooling::Last), ("cls", Pooling::Cls)];

/// The largest difference of a number in a vector of length 1, whose numbers are about 0.1.
const MAX_ERROR: f32 = 1e-5;

struct Bench {
    model: Model,
    registry: Registry,
}

fn config(pooling: Pooling) -> EngineConfig {
    EngineConfig {
        pooling: Some(pooling),
        block_size: BLOCK_SIZE,
        kv_dtype: KvDType::F32,
        kv_memory_bytes: Some(kv_bytes(1000)),
        drain_timeout: Duration::from_secs(20),
        ..EngineConfig::default()
    }
}

/// Room for `num_blocks` blocks of `tiny-llama`.
fn kv_bytes(num_blocks: usize) -> usize {
    let layout =
        KvLayout { num_layers: 2, num_kv_heads: 2, head_size: 16, block_size: BLOCK_SIZE, dtype: KvDType::F32 };
    num_blocks * layout.block_bytes()
}

fn start_model(name: &str, config: &EngineConfig) -> Bench {
    let source = ModelSource { path: fixture(name), id: None, chat_template: None, packed_cache: None };
    let registry = Registry::new();
    let model = Model::load(&source, config, &EngineMetrics::register(&registry)).unwrap();
    Bench { model, registry }
}

fn start(config: &EngineConfig) -> Bench {
    start_model("tiny-llama", config)
}

impl Bench {
    async fn embed(&self, texts: Vec<Vec<u32>>) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.model.embed(request(texts)).await.map(|embeddings| embeddings.vectors)
    }

    async fn refusal(&self, request: EmbedRequest) -> String {
        self.model.embed(request).await.unwrap_err().to_string()
    }

    async fn generate(&self, prompt: Vec<u32>, num_tokens: usize) -> TextStream {
        self.model.generate(generate_request(prompt, num_tokens)).await.unwrap()
    }

    fn counter(&self, name: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family.get_metric().iter().map(|metric| metric.get_counter().get_value() as u64).sum()
    }

    /// Waits for a step, so that counters are as of all that came before.
    async fn catch_up(&self) {
        drain(self.generate(vec![299], 1).await).await;
    }

    /// Waits until the engine has nothing left, and checks that it holds nothing.
    async fn settle(&self) {
        for _ in 0..5_000 {
            let status = self.model.status();
            if status.num_running == 0 && status.num_waiting == 0 {
                assert_eq!(status.num_blocks_used, 0, "{status:?}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("the engine did not settle: {:?}", self.model.status());
    }
}

fn generate_request(prompt: Vec<u32>, num_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: Prompt::Tokens(prompt),
        num_choices: 1,
        max_tokens: Some(num_tokens),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        stop: StopConditions { ignore_eos: true, ..StopConditions::default() },
        logprobs: None,
        priority: Priority::default(),
        cache_salt: None,
    }
}

/// Tries to make sequences meet.
const MAX_ROUNDS: usize = 50;

fn request(texts: Vec<Vec<u32>>) -> EmbedRequest {
    EmbedRequest {
        inputs: texts.into_iter().map(Prompt::Tokens).collect(),
        dimensions: None,
        priority: Priority::default(),
        cache_salt: None,
    }
}

/// Texts of 1 to 91 tokens, the later ones with a common beginning.
fn texts() -> Vec<Vec<u32>> {
    let text =
        |length: u32| (0..length).map(move |i| if length > 40 && i < 24 { i } else { (i * i + length) % 300 + 3 });
    [1, 2, 5, 17, 33, 47, 64, 91].into_iter().map(|length| text(length).collect()).collect()
}

/// Each alone, in one step, in an engine of its own.
async fn alone(pooling: Pooling) -> Vec<Vec<f32>> {
    let mut vectors = Vec::new();
    for text in texts() {
        vectors.extend(start(&config(pooling)).embed(vec![text]).await.unwrap());
    }
    vectors
}

async fn drain(mut stream: TextStream) -> usize {
    while stream.next().await.is_some() {}
    stream.usage().num_completion_tokens
}

#[tokio::test]
async fn vectors_agree_with_sentence_transformers() {
    for model in ["tiny-llama", "tiny-llama-bf16"] {
        let reference = Reference::read(&format!("{model}.sentence-transformers"));
        for (name, pooling) in POOLINGS {
            let bench = start_model(model, &EngineConfig { kv_memory_bytes: None, ..config(pooling) });
            let prompts = reference.prompts().map(|(_, prompt)| prompt.to_vec()).collect::<Vec<_>>();
            let vectors = bench.embed(prompts).await.unwrap();
            assert_eq!(vectors.len(), 4);
            for (index, vector) in vectors.iter().enumerate() {
                let expected = reference.values(&format!("{name}.{index}"));
                assert_eq!(vector.len(), expected.len());
                let error = vector.iter().zip(expected).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
                assert!(error < MAX_ERROR, "{model}, {name} of text {index}: {error:.1e} off");
            }
        }
    }
}

#[tokio::test]
async fn a_vector_has_the_same_bits_alone_and_in_chunks_beside_others() {
    for (name, pooling) in POOLINGS {
        let alone = alone(pooling).await;
        for (max_num_batched_tokens, max_num_seqs) in [(512, 32), (7, 4), (1, 2)] {
            let bench = start(&EngineConfig { max_num_batched_tokens, max_num_seqs, ..config(pooling) });
            let generation = tokio::spawn(drain(bench.generate(vec![5, 6, 7], 60).await));
            let together = bench.embed(texts()).await.unwrap();
            assert!(together == alone, "{name} in steps of {max_num_batched_tokens} tokens");
            assert_eq!(generation.await.unwrap(), 60);
            bench.settle().await;
        }
    }
}

#[tokio::test]
async fn a_text_that_is_preempted_is_computed_again_from_nothing() {
    for (name, pooling) in POOLINGS {
        let alone = alone(pooling).await;
        let config = EngineConfig { max_num_batched_tokens: 8, kv_memory_bytes: Some(kv_bytes(60)), ..config(pooling) };
        let bench = start(&config);
        let num_preempted = || bench.counter("mistralrs_paged_preemptions_total");
        // Whether they meet in memory is the machine's business: on a busy one they may come after each other.
        for _ in 0..MAX_ROUNDS {
            let mut generations = Vec::new();
            for index in 0..4 {
                generations.push(tokio::spawn(drain(bench.generate(vec![index + 3, 9], 70).await)));
            }
            // The last in line give way.
            let together = bench.embed(texts()).await.unwrap();
            let were_preempted = num_preempted() > 0;
            assert!(together == alone, "{name}");
            for generation in generations {
                assert_eq!(generation.await.unwrap(), 70);
            }
            bench.settle().await;
            if were_preempted {
                break;
            }
        }
        assert!(num_preempted() > 0, "{name}: nothing was preempted");
    }
}

#[tokio::test]
async fn only_the_last_tokens_vector_may_come_after_a_cached_prefix() {
    for (name, pooling) in POOLINGS {
        let alone = alone(pooling).await;
        let bench = start(&config(pooling));
        for text in texts() {
            drain(bench.generate(text, 3).await).await;
        }
        bench.catch_up().await;
        let hits_before = bench.counter("mistralrs_prefix_cache_hits_total");
        assert!(bench.embed(texts()).await.unwrap() == alone, "{name} after prefix hits");
        bench.catch_up().await;
        let num_hits = bench.counter("mistralrs_prefix_cache_hits_total") - hits_before;
        // Of each text all full blocks but one with the last token in it.
        let num_blocks = texts().iter().map(|text| ((text.len() - 1) / BLOCK_SIZE) as u64).sum();
        assert_eq!(num_hits, if pooling == Pooling::Last { num_blocks } else { 0 }, "{name}");
    }
}

#[tokio::test]
async fn embeddings_are_counted_as_completed_sequences_and_not_as_tokens_generated() {
    let bench = start(&config(Pooling::Mean));
    let embeddings = bench.model.embed(request(texts())).await.unwrap();
    assert_eq!(embeddings.num_prompt_tokens, texts().iter().map(Vec::len).sum::<usize>());
    bench.catch_up().await;
    // The request that waited for them may or may not be counted by now: it is one sequence of one token.
    let num_sequences = bench.counter("mistralrs_sequences_completed_total") - texts().len() as u64;
    let num_tokens = bench.counter("mistralrs_tokens_processed_total") - embeddings.num_prompt_tokens as u64;
    assert!(num_sequences <= 1 && num_tokens <= 1, "{num_sequences} sequences and {num_tokens} tokens too many");
}

#[tokio::test]
async fn a_shorter_vector_is_the_beginning_of_the_whole_one_at_length_one() {
    let bench = start(&config(Pooling::Last));
    let whole = bench.embed(vec![vec![4, 5, 6]]).await.unwrap().remove(0);
    let short = EmbedRequest { dimensions: Some(16), ..request(vec![vec![4, 5, 6]]) };
    let short = bench.model.embed(short).await.unwrap().vectors.remove(0);
    let length = |vector: &[f32]| vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    assert_eq!((whole.len(), short.len()), (HIDDEN_SIZE, 16));
    assert!((length(&whole) - 1.0).abs() < 1e-6 && (length(&short) - 1.0).abs() < 1e-6);
    let scale = length(&whole[..16]);
    for (one, other) in short.iter().zip(&whole) {
        assert!((f64::from(*one) - f64::from(*other) / scale).abs() < 1e-6);
    }
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_with_its_place_and_the_numbers() {
    let bench = start(&EngineConfig { kv_memory_bytes: Some(kv_bytes(50)), ..config(Pooling::Last) });
    let refused = bench.refusal(request(vec![vec![1], vec![1; 201]])).await;
    assert_eq!(refused, "`input[1]` has 201 tokens, but the KV cache is 200 tokens");
    assert_eq!(bench.embed(vec![vec![1; 200]]).await.unwrap().len(), 1, "the longest that fits");
    let refused = bench.refusal(request(vec![vec![1; 600]])).await;
    assert_eq!(refused, "`input[0]` has 600 tokens, but the context length is 512 tokens");
    assert_eq!(bench.counter("mistralrs_sequences_rejected_total"), 2);
    let refused = bench.refusal(request(vec![vec![1], vec![]])).await;
    assert_eq!(refused, "`input[1]`: the prompt is empty; it must have at least one token");
    let refused = bench.refusal(request(vec![vec![320]])).await;
    assert_eq!(refused, "`input[0]`: token id 320 is outside the vocabulary of 320 tokens");
    assert_eq!(bench.refusal(request(vec![])).await, "`input` has 0 texts; expected 1 to 2048");
    assert_eq!(bench.refusal(request(vec![vec![1]; 2049])).await, "`input` has 2049 texts; expected 1 to 2048");
    for dimensions in [0, 65] {
        let refused = bench.refusal(EmbedRequest { dimensions: Some(dimensions), ..request(vec![vec![1]]) }).await;
        assert_eq!(refused, format!("`dimensions` is {dimensions}; expected 1 to 64, all that the model has"));
    }
}

#[tokio::test]
async fn the_models_own_pooling_is_used_and_one_that_is_not_supported_is_named() {
    let directory = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixture("tiny-llama")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), directory.path().join(file.file_name())).unwrap();
    }
    std::fs::create_dir(directory.path().join("1_Pooling")).unwrap();
    let load = |mode: &str, pooling: Option<Pooling>| {
        let text = format!("{{\"pooling_mode\": \"{mode}\"}}");
        std::fs::write(directory.path().join("1_Pooling/config.json"), text).unwrap();
        let source =
            ModelSource { path: directory.path().to_owned(), id: None, chat_template: None, packed_cache: None };
        let config = EngineConfig { pooling, ..config(Pooling::Last) };
        let registry = Registry::new();
        Bench { model: Model::load(&source, &config, &EngineMetrics::register(&registry)).unwrap(), registry }
    };
    let text = vec![vec![4, 5, 6, 7]];
    let of = async |pooling| start(&config(pooling)).embed(text.clone()).await.unwrap();
    assert_eq!(load("mean", None).embed(text.clone()).await.unwrap(), of(Pooling::Mean).await);
    assert_eq!(load("mean", Some(Pooling::Last)).embed(text.clone()).await.unwrap(), of(Pooling::Last).await);
    let refused = load("max", None).refusal(request(text.clone())).await;
    assert!(refused.contains("made by `max` pooling, which is not supported; start with --pooling"), "{refused}");
    assert!(load("max", Some(Pooling::Mean)).embed(text).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_batch_needs_few_places_and_keeps_nobody_waiting_for_all_of_it() {
    // A place for the batch, two for its window, one for whoever comes.
    let config = EngineConfig { max_waiting_requests: 4, max_num_seqs: 2, ..config(Pooling::Mean) };
    let bench = start(&EngineConfig { max_num_batched_tokens: 64, ..config });
    let mut batch = std::pin::pin!(bench.embed((0..200_u32).map(|i| vec![i % 300; 100]).collect()));
    // Poll it until the engine runs it.
    while bench.model.status().num_running == 0 {
        assert!(poll_for_a_moment(batch.as_mut()).await.is_none(), "the batch ended before anybody could come");
    }
    tokio::select! {
        biased;
        num_tokens = async { drain(bench.generate(vec![5, 6], 3).await).await } => assert_eq!(num_tokens, 3),
        _ = batch.as_mut() => panic!("whoever came during the batch was served after it"),
    }
    assert_eq!(batch.await.unwrap().len(), 200);
    bench.settle().await;
}

/// The future's output, if it is there within a millisecond.
async fn poll_for_a_moment<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    tokio::time::timeout(Duration::from_millis(1), future).await.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_has_begun_goes_on_however_full_the_queue_is() {
    let config = EngineConfig { max_waiting_requests: 2, max_num_seqs: 1, ..config(Pooling::Mean) };
    let bench = start(&EngineConfig { max_num_batched_tokens: 16, ..config });
    let model = bench.model.clone();
    let batch = tokio::spawn(async move { model.embed(request(vec![vec![7; 300]; 8])).await });
    while bench.model.status().num_running == 0 {
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    // One of these runs and one waits at almost any time.
    let others = (0..4).map(|index| {
        let model = bench.model.clone();
        tokio::spawn(async move {
            loop {
                if let Ok(stream) = model.generate(generate_request(vec![index + 3], 20)).await {
                    drain(stream).await;
                }
                tokio::time::sleep(Duration::from_micros(300)).await;
            }
        })
    });
    let others: Vec<_> = others.collect();
    let embeddings = tokio::time::timeout(Duration::from_mins(1), batch).await.expect("it is served in the end");
    assert_eq!(embeddings.unwrap().unwrap().vectors.len(), 8);
    others.iter().for_each(tokio::task::JoinHandle::abort);
    bench.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_client_leaves_frees_everything() {
    for (_, pooling) in POOLINGS {
        let bench = start(&EngineConfig { max_num_batched_tokens: 16, ..config(pooling) });
        for millis in [0, 1, 5, 20] {
            let batch = bench.embed(vec![vec![7; 200]; 1000]);
            assert!(tokio::time::timeout(Duration::from_millis(millis), batch).await.is_err());
            bench.settle().await;
        }
        assert_eq!(bench.embed(vec![vec![1]]).await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_lets_a_batch_finish_that_has_begun_and_refuses_the_next() {
    // A window of one text, so that the engine is idle between any two.
    let drain_timeout = Duration::from_mins(10);
    let config = EngineConfig { max_num_batched_tokens: 16, max_num_seqs: 1, drain_timeout, ..config(Pooling::Mean) };
    let bench = start(&config);
    let model = bench.model.clone();
    let batch = tokio::spawn(async move { model.embed(request(vec![vec![7; 100]; 100])).await });
    while bench.model.status().num_running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.model.shutdown().await;
    assert_eq!(batch.await.unwrap().unwrap().vectors.len(), 100);
    assert_eq!(bench.embed(vec![vec![1]]).await, Err(EmbedError::Request(RequestError::ShuttingDown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_outlasts_the_drain_timeout_is_cancelled() {
    let bench = start(&EngineConfig { drain_timeout: Duration::from_millis(20), ..config(Pooling::Mean) });
    let model = bench.model.clone();
    let batch = tokio::spawn(async move { model.embed(request(vec![vec![7; 400]; 2000])).await });
    while bench.model.status().num_running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let started = std::time::Instant::now();
    bench.model.shutdown().await;
    assert!(started.elapsed() < Duration::from_secs(5), "the engine's thread did not end");
    assert_eq!(batch.await.unwrap(), Err(EmbedError::Request(RequestError::ShuttingDown)));
}
