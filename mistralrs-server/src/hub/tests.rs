use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use mistralrs_core::EngineConfig;
use serde_json::json;

use super::*;
use crate::config::HubSettings;

const COMMIT: &str = "0123456789012345678901234567890123456789";

/// A hub with one repository, `org/model`, that counts what is asked of it.
struct FakeHub {
    files: &'static [(&'static str, &'static str)],
    num_requests: AtomicUsize,
}

impl FakeHub {
    async fn start(files: &'static [(&'static str, &'static str)]) -> (SocketAddr, Arc<Self>) {
        let hub = Arc::new(Self { files, num_requests: AtomicUsize::new(0) });
        let router = Router::new()
            .route("/api/models/org/model/tree/{revision}", get(tree))
            .route("/api/models/org/model/revision/{revision}", get(async || axum::Json(json!({ "sha": COMMIT }))))
            .route("/org/model/resolve/{revision}/{*file}", get(file))
            .with_state(Arc::clone(&hub));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (addr, hub)
    }
}

async fn tree(State(hub): State<Arc<FakeHub>>) -> axum::Json<serde_json::Value> {
    hub.num_requests.fetch_add(1, Ordering::Relaxed);
    let files =
        hub.files.iter().map(|(name, text)| json!({ "type": "file", "oid": name, "size": text.len(), "path": name }));
    axum::Json(files.collect())
}

async fn file(State(hub): State<Arc<FakeHub>>, UrlPath((_, name)): UrlPath<(String, String)>) -> Response {
    hub.num_requests.fetch_add(1, Ordering::Relaxed);
    let Some((_, text)) = hub.files.iter().find(|(known, _)| *known == name) else {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap();
    };
    Response::builder()
        .header("etag", format!("\"{name}\""))
        .header("x-repo-commit", COMMIT)
        .header("content-length", text.len())
        .body(Body::from(*text))
        .unwrap()
}

fn settings(endpoint: &str, cache: &Path, selector: ModelSelector) -> ModelSettings {
    ModelSettings {
        selector,
        draft: None,
        served_model_name: None,
        chat_template: None,
        packed_cache: None,
        hub: HubSettings {
            cache_dir: cache.to_owned(),
            endpoint: Some(endpoint.to_owned()),
            token: None,
            offline: false,
        },
        engine: EngineConfig::default(),
    }
}

fn selector(format: ModelFormat, model_id: &str, file: Option<&str>) -> ModelSelector {
    ModelSelector { format, model_id: model_id.to_owned(), file: file.map(str::to_owned) }
}

async fn fetch_all(settings: &ModelSettings) -> Result<ModelSource, HubError> {
    fetch(locate(&settings.selector)?, settings).await
}

fn names(directory: &Path) -> String {
    file_names(directory).join(" ")
}

const SAFETENSORS: &[(&str, &str)] = &[
    ("1_Pooling/config.json", "{}"),
    ("README.md", "not needed"),
    ("config.json", "{}"),
    ("model-00001-of-00002.safetensors", "one"),
    ("model-00002-of-00002.safetensors", "two"),
    ("onnx/model.safetensors", "not needed"),
    ("pytorch_model.bin", "not needed"),
    ("tokenizer.json", "{}"),
];

#[tokio::test]
async fn a_hub_id_is_fetched_once_and_only_what_a_model_needs() {
    let cache = tempfile::tempdir().unwrap();
    let (addr, hub) = FakeHub::start(SAFETENSORS).await;
    let settings = settings(&format!("http://{addr}"), cache.path(), selector(ModelFormat::Auto, "org/model", None));

    let source = fetch_all(&settings).await.unwrap();
    assert_eq!(source.id.as_deref(), Some("org/model"));
    assert_eq!(
        names(&source.path),
        "1_Pooling config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors tokenizer.json"
    );
    assert!(source.path.join("1_Pooling/config.json").is_file());
    assert_eq!(std::fs::read_to_string(source.path.join("model-00002-of-00002.safetensors")).unwrap(), "two");

    let num_requests = hub.num_requests.load(Ordering::Relaxed);
    fetch_all(&settings).await.unwrap();
    let again = hub.num_requests.load(Ordering::Relaxed) - num_requests;
    assert_eq!(again, 2, "the lists of files are asked for again, the files are not");
}

#[tokio::test]
async fn one_gguf_file_of_a_repository_is_fetched_and_several_are_a_question() {
    let cache = tempfile::tempdir().unwrap();
    let (addr, _hub) = FakeHub::start(&[("a.Q4_0.gguf", "small"), ("a.Q8_0.gguf", "large")]).await;
    let endpoint = format!("http://{addr}");

    let one = settings(&endpoint, cache.path(), selector(ModelFormat::Gguf, "org/model", Some("a.Q8_0.gguf")));
    let source = fetch_all(&one).await.unwrap();
    assert_eq!(std::fs::read_to_string(&source.path).unwrap(), "large");
    assert_eq!(names(source.path.parent().unwrap()), "a.Q8_0.gguf");

    let any = settings(&endpoint, cache.path(), selector(ModelFormat::Auto, "org/model", None));
    assert_eq!(
        fetch_all(&any).await.unwrap_err().to_string(),
        "the hub's `org/model`: has several GGUF files; choose one with `gguf -f FILE`, a draft model's by its path. there are: a.Q4_0.gguf, a.Q8_0.gguf"
    );
}

#[tokio::test]
async fn without_a_hub_the_cache_is_used_and_otherwise_the_error_says_what_was_tried() {
    let cache = tempfile::tempdir().unwrap();
    let (addr, hub) = FakeHub::start(SAFETENSORS).await;
    let online = settings(&format!("http://{addr}"), cache.path(), selector(ModelFormat::Auto, "org/model", None));
    let path = fetch_all(&online).await.unwrap().path;
    let num_requests = hub.num_requests.load(Ordering::Relaxed);

    let mut offline = online.clone();
    offline.hub.offline = true;
    assert_eq!(fetch_all(&offline).await.unwrap().path, path);
    assert_eq!(hub.num_requests.load(Ordering::Relaxed), num_requests, "offline asks nobody");

    let mut unreachable = online.clone();
    // Port 1 is reserved and has no listener.
    unreachable.hub.endpoint = Some("http://127.0.0.1:1".to_owned());
    assert_eq!(fetch_all(&unreachable).await.unwrap().path, path);

    let empty = tempfile::tempdir().unwrap();
    offline.hub.cache_dir = empty.path().to_owned();
    unreachable.hub.cache_dir = empty.path().to_owned();
    let place = empty.path().display().to_string();
    let message = |error: HubError| error.to_string().replace(&place, "CACHE");
    assert_eq!(
        message(fetch_all(&offline).await.unwrap_err()),
        "`org/model` is not in the cache CACHE, and HF_HUB_OFFLINE is set; unset it, or give a local path"
    );
    let error = message(fetch_all(&unreachable).await.unwrap_err());
    let expected =
        "`org/model` is neither a local path nor in the cache CACHE, and http://127.0.0.1:1 could not be reached: ";
    assert!(error.starts_with(expected), "{error}");
}

#[tokio::test]
async fn a_repository_that_is_not_there_is_refused_with_what_may_help() {
    let cache = tempfile::tempdir().unwrap();
    let (addr, _hub) = FakeHub::start(&[]).await;
    let settings = settings(&format!("http://{addr}"), cache.path(), selector(ModelFormat::Auto, "org/other", None));
    let error = fetch_all(&settings).await.unwrap_err().to_string();
    assert!(error.starts_with("the model hub refused `org/other`: HTTP error: 404"), "{error}");
    assert!(error.ends_with("set HF_TOKEN or --token-source"), "{error}");
}

#[test]
fn a_path_is_taken_as_it_is_and_a_wrong_one_is_refused_without_asking_a_hub() {
    let root = tempfile::tempdir().unwrap();
    let make = |path: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
    };
    let files = ["one/a.gguf", "two/a.gguf", "two/b.gguf", "st/config.json", "st/model.safetensors", "empty/notes.txt"];
    files.into_iter().for_each(make);
    let prefix = format!("{}/", root.path().display());
    let check = |format, model_id: &str, file, expected: &str| {
        let found = match locate(&selector(format, &format!("{prefix}{model_id}"), file)) {
            Ok(Located::Local(path)) => path.display().to_string(),
            Ok(Located::Hub { repo, .. }) => format!("hub {repo}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(found.replace(&prefix, ""), expected);
    };
    check(ModelFormat::Auto, "one/a.gguf", None, "one/a.gguf");
    check(ModelFormat::Auto, "one", None, "one/a.gguf");
    check(ModelFormat::Auto, "st", None, "st");
    check(ModelFormat::Safetensors, "st", None, "st");
    check(ModelFormat::Gguf, "two", Some("b.gguf"), "two/b.gguf");
    check(ModelFormat::Gguf, "two", Some("c.gguf"), "two: has no file `c.gguf`; there are: a.gguf, b.gguf");
    check(
        ModelFormat::Gguf,
        "two",
        None,
        "two: has several GGUF files; choose one with `gguf -f FILE`, a draft model's by its path. there are: a.gguf, b.gguf",
    );
    check(ModelFormat::Auto, "empty", None, "empty: has neither config.json with *.safetensors nor a .gguf file");
    check(ModelFormat::Safetensors, "one", None, "one: has no config.json with *.safetensors beside it");
    check(
        ModelFormat::Auto,
        "missing.gguf",
        None,
        "there is no file or directory `missing.gguf`, and it does not look like a hub id (`org/name`)",
    );
}

#[test]
fn hub_ids_are_told_from_paths() {
    for id in ["org/name", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b_c.d"] {
        assert!(is_hub_id(id), "{id}");
    }
    for path in ["name", "./org/name", "../x", "/org/name", "a/b/c", "dir/file.gguf", "org/", "~/x", "a b/c", "C:\\x"] {
        assert!(!is_hub_id(path), "{path}");
    }
}
