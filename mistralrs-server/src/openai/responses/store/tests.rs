//! That limits hold whatever happens in whichever order, and that nobody sees what is not theirs.

use serde_json::json;

use super::*;
use crate::extract::RequestBody;
use crate::openai::responses::request::ResponseRequest;

const ANN: Principal = Principal::Key([1; 32]);
const BOB: Principal = Principal::Key([2; 32]);

fn limits() -> StoreLimits {
    StoreLimits { max_stored: 4, max_stored_bytes: 1 << 20, ttl: Duration::from_secs(10), max_background: 2 }
}

/// A response to `text` that has begun.
fn response(text: &str) -> StoredResponse {
    let request = ResponseRequest::from_body(&json!({ "input": text })).unwrap();
    StoredResponse { object: request.to_object("m"), input: request.input_items().unwrap() }
}

/// Keeps a response to `text` that has ended; its id.
fn keep(store: &Arc<ResponseStore>, owner: Principal, text: &str) -> String {
    let StoredResponse { object, input } = response(text).with_status(ResponseStatus::Completed);
    Keeping { store: Some(Arc::clone(store)), owner, input }.keep(&object);
    object.id
}

fn status(store: &ResponseStore, owner: Principal, id: &str) -> &'static str {
    store.get(owner, id).map_or("unknown", |response| response.object.status.as_str())
}

#[tokio::test(start_paused = true)]
async fn the_oldest_goes_when_there_are_too_many() {
    let store = ResponseStore::new(limits(), &Registry::new());
    let ids: Vec<String> = (0..6).map(|index| keep(&store, ANN, &format!("text {index}"))).collect();
    let found: Vec<_> = ids.iter().map(|id| status(&store, ANN, id)).collect();
    assert_eq!(found, ["unknown", "unknown", "completed", "completed", "completed", "completed"]);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_go_when_they_are_too_large_and_one_that_never_fits_takes_no_place() {
    let small = response("small").num_bytes();
    let store = ResponseStore::new(StoreLimits { max_stored_bytes: 3 * small, ..limits() }, &Registry::new());
    let first = keep(&store, ANN, "small");
    let second = keep(&store, ANN, "small");
    let large = keep(&store, ANN, &"large".repeat(small));
    assert_eq!([&first, &second, &large].map(|id| status(&store, ANN, id)), ["completed", "completed", "unknown"]);
    let medium = keep(&store, ANN, &"x".repeat(small));
    assert_eq!([&first, &second, &medium].map(|id| status(&store, ANN, id)), ["unknown", "completed", "completed"]);
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_how_much_is_kept_and_why_the_rest_is_not() {
    let registry = Registry::new();
    let small = response("small").num_bytes();
    let store = ResponseStore::new(StoreLimits { max_stored: 3, max_stored_bytes: 3 * small, ..limits() }, &registry);
    for text in ["small", "small", "small", "small", &"x".repeat(small), &"large".repeat(small)] {
        keep(&store, ANN, text);
    }
    let shown = || {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bytes"));
        lines.collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(shown(), @r#"
    mistralrs_responses_evicted_total{reason="age"} 0
    mistralrs_responses_evicted_total{reason="never_fits"} 1
    mistralrs_responses_evicted_total{reason="number"} 2
    mistralrs_responses_evicted_total{reason="size"} 1
    mistralrs_responses_stored 2
    "#);
    tokio::time::sleep(limits().ttl).await;
    assert!(store.get(ANN, "none").is_err());
    insta::assert_snapshot!(shown(), @r#"
    mistralrs_responses_evicted_total{reason="age"} 2
    mistralrs_responses_evicted_total{reason="never_fits"} 1
    mistralrs_responses_evicted_total{reason="number"} 2
    mistralrs_responses_evicted_total{reason="size"} 1
    mistralrs_responses_stored 0
    "#);
}

#[tokio::test(start_paused = true)]
async fn a_response_cannot_be_read_from_its_last_second_on_and_the_sweep_frees_its_memory() {
    let store = ResponseStore::new(limits(), &Registry::new());
    let shutdown = CancellationToken::new();
    let sweep = tokio::spawn(Arc::clone(&store).sweep(shutdown.clone()));
    let id = keep(&store, ANN, "text");
    tokio::time::sleep(limits().ttl.saturating_sub(Duration::from_millis(1))).await;
    assert_eq!(status(&store, ANN, &id), "completed");
    let kept = Arc::downgrade(&store.get(ANN, &id).unwrap());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(kept.upgrade().is_some(), "it is freed without a sweep, so the next lines prove nothing");
    tokio::time::sleep(SWEEP_INTERVAL).await;
    assert!(kept.upgrade().is_none());
    assert_eq!(status(&store, ANN, &id), "unknown");
    shutdown.cancel();
    sweep.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_reads_ends_or_forgets_what_another_key_has() {
    let store = ResponseStore::new(limits(), &Registry::new());
    let id = keep(&store, ANN, "secret");
    assert_eq!(
        store.get(BOB, &id).err().unwrap().to_string(),
        store.get(BOB, "resp_0").err().unwrap().to_string().replace("resp_0", &id)
    );
    assert!(store.get(Principal::Anybody, &id).is_err());
    assert!(store.delete(BOB, &id).is_err() && store.cancel(BOB, &id).is_err());
    assert_eq!(status(&store, ANN, &id), "completed");
    store.delete(ANN, &id).unwrap();
    assert_eq!(status(&store, ANN, &id), "unknown");
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_neither_evicted_nor_expired_and_bounded_in_number() {
    let store = ResponseStore::new(limits(), &Registry::new());
    let running = store.begin(ANN, response("running")).unwrap();
    let _second = store.begin(BOB, response("running")).unwrap();
    let refused = store.begin(ANN, response("one too many")).err().unwrap();
    assert_eq!(refused.to_string(), "2 responses run in the background, which is the limit; try again later");
    for index in 0..10 {
        keep(&store, ANN, &format!("text {index}"));
    }
    tokio::time::advance(10 * limits().ttl).await;
    let id = running.id.clone();
    running.advance();
    assert_eq!(status(&store, ANN, &id), "in_progress");
    running.finish(response("done").with_status(ResponseStatus::Completed).with_id(&id));
    assert_eq!(status(&store, ANN, &id), "completed");
    tokio::time::advance(limits().ttl).await;
    assert_eq!(status(&store, ANN, &id), "unknown", "its time begins when it ends");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_response_stays_cancelled_and_its_task_is_told() {
    let store = ResponseStore::new(limits(), &Registry::new());
    let running = store.begin(ANN, response("running")).unwrap();
    let id = running.id.clone();
    assert_eq!(store.cancel(ANN, &id).unwrap().object.status, ResponseStatus::Cancelled);
    running.cancelled().await;
    running.finish(response("too late").with_status(ResponseStatus::Completed).with_id(&id));
    assert_eq!(status(&store, ANN, &id), "cancelled");
    assert_eq!(store.cancel(ANN, &id).unwrap().object.status, ResponseStatus::Cancelled);

    let deleted = store.begin(ANN, response("running")).unwrap();
    store.delete(ANN, &deleted.id).unwrap();
    deleted.cancelled().await;
    let stopped = store.begin(ANN, response("running")).unwrap();
    store.cancel_running();
    stopped.cancelled().await;
    assert_eq!(status(&store, ANN, &stopped.id), "cancelled");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_leaves_a_failed_response() {
    let store = ResponseStore::new(limits(), &Registry::new());
    let running = store.begin(ANN, response("running")).unwrap();
    let id = running.id.clone();
    let task = tokio::spawn(async move {
        let _running = running;
        panic!("as a bug would");
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(status(&store, ANN, &id), "failed");
}

#[tokio::test(start_paused = true)]
async fn any_order_of_operations_keeps_every_limit() {
    let bytes = response("x").num_bytes();
    for (seed, max_stored) in [(1, 1), (2, 3), (3, 8), (4, 0)] {
        let limits = StoreLimits { max_stored, max_stored_bytes: 4 * bytes, ..limits() };
        let store = ResponseStore::new(limits, &Registry::new());
        let mut random = Random(seed);
        let (mut ids, mut running) = (Vec::new(), Vec::new());
        for _ in 0..3000 {
            let owner = if random.below(2) == 0 { ANN } else { BOB };
            let text = "x".repeat(random.below(2 * bytes));
            let id = ids.get(random.below(ids.len().max(1))).cloned().unwrap_or_default();
            match random.below(8) {
                0 | 1 => ids.push(keep(&store, owner, &text)),
                2 => {
                    if let Ok(begun) = store.begin(owner, response(&text)) {
                        ids.push(begun.id.clone());
                        running.push(begun);
                    }
                }
                3 if !running.is_empty() => {
                    let begun: RunningResponse = running.swap_remove(random.below(running.len()));
                    let id = begun.id.clone();
                    begun.finish(response(&text).with_status(ResponseStatus::Incomplete).with_id(&id));
                }
                3 | 4 => drop(running.pop()),
                5 => drop(store.cancel(owner, &id)),
                6 => drop(store.delete(owner, &id)),
                _ => tokio::time::advance(Duration::from_millis(random.below(5000) as u64)).await,
            }
            store.table.lock().check_invariants();
        }
    }
}

impl StoredResponse {
    fn with_id(self, id: &str) -> ResponseObject {
        ResponseObject { id: id.to_owned(), ..self.object }
    }
}

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
