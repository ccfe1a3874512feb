//! Bad input, from the command line to the deepest JSON: a clear word, the process alive, nothing leaked.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use support::gguf;
use support::process::{self, eventually};
use support::server::Shared;
use support::{Http, Launch, tools};

static SHARED: Shared = Shared::new(Launch::model);

/// Starts with these words and expects a refusal that mentions every fragment.
async fn check_refused(launch: Launch, fragments: &[&str]) -> anyhow::Result<()> {
    let (status, log) = launch.run_to_exit().await?;
    ensure!(!status.success(), "started:\n{log}");
    ensure!(status.code().is_some(), "died of a signal ({status}):\n{log}");
    ensure!(!log.contains("panicked"), "panicked:\n{log}");
    for fragment in fragments {
        ensure!(log.contains(fragment), "{fragment:?} is not in the message:\n{log}");
    }
    Ok(())
}

fn gguf_launch(path: &Path) -> Launch {
    Launch::default().selector(["run".as_ref(), "-m".as_ref(), path.as_os_str()])
}

#[tokio::test]
async fn a_wrong_flag_names_itself_and_the_nearest_one() -> anyhow::Result<()> {
    check_refused(Launch::model().option("--prot", "1"), &["--prot", "--port"]).await?;
    check_refused(Launch::model().option("--port", "seven"), &["--port", "seven"]).await?;
    check_refused(Launch::model().option("--paged-attn", "maybe"), &["--paged-attn", "maybe", "auto", "on", "off"])
        .await?;
    check_refused(Launch::default().selector(["gguff", "-m", "x"]), &["gguff", "gguf"]).await?;
    check_refused(Launch::default(), &["run"]).await
}

#[tokio::test]
async fn a_missing_file_is_named() -> anyhow::Result<()> {
    check_refused(gguf_launch(Path::new("/no/such/model.gguf")), &["/no/such/model.gguf"]).await?;
    let directory = Launch::default().selector(["gguf", "-m", "/no/such/directory", "-f", "model.gguf"]);
    check_refused(directory, &["/no/such/directory"]).await?;
    check_refused(Launch::model().option("--config", "/no/such.toml"), &["/no/such.toml"]).await?;
    check_refused(Launch::model().option("--chat-template", "/no/such.jinja"), &["/no/such.jinja"]).await?;
    let draft = Launch::model().option("--draft-model", "/no/such/draft.gguf");
    check_refused(draft, &["--draft-model", "/no/such/draft.gguf"]).await
}

#[tokio::test]
async fn a_draft_model_that_cannot_guess_for_the_model_is_refused_before_anything_is_served() -> anyhow::Result<()> {
    let tiny = tools::workspace().join("mistralrs-core/tests/fixtures/tiny-llama");
    let (status, log) = Launch::model().option("--draft-model", &tiny).run_to_exit().await?;
    ensure!(status.code() == Some(1), "{status}:\n{log}");
    let expected = "--draft-model: its vocabulary is not the model's: it has 320 tokens, the model's has 49152";
    ensure!(log.contains(expected) && !log.contains("the model is ready"), "{log}");
    let directory = tempfile::tempdir()?;
    let text = directory.path().join("text.gguf");
    fs::write(&text, b"this is not a model")?;
    check_refused(Launch::model().option("--draft-model", &text), &["--draft-model", "text.gguf"]).await?;
    let off = Launch::model().option("--draft-model", &tiny).option("--max-draft-tokens", "0");
    check_refused(off, &["--draft-model", "--max-draft-tokens 0"]).await
}

#[tokio::test]
async fn a_file_that_is_no_model_is_refused_by_name_and_reason() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).map(|()| path)
    };
    let whole = fs::read(tools::smollm2())?;
    check_refused(gguf_launch(&file("empty.gguf", b"")?), &["empty.gguf"]).await?;
    check_refused(gguf_launch(&file("text.gguf", b"this is not a model")?), &["text.gguf"]).await?;
    check_refused(gguf_launch(&file("header.gguf", &whole[..1000])?), &["header.gguf"]).await?;
    check_refused(gguf_launch(&file("half.gguf", &whole[..whole.len() / 2])?), &["half.gguf"]).await?;
    check_refused(gguf_launch(&file("last.gguf", &whole[..whole.len() - 1])?), &["last.gguf"]).await?;
    let foreign = gguf::header(&[("general.architecture", "mamba"), ("general.name", "Foreign")]);
    check_refused(gguf_launch(&file("foreign.gguf", &foreign)?), &["foreign.gguf", "mamba", "llama"]).await?;
    let incomplete = gguf::header(&[("general.architecture", "llama")]);
    check_refused(gguf_launch(&file("incomplete.gguf", &incomplete)?), &["incomplete.gguf"]).await?;
    // A count that would be petabytes must not be believed.
    check_refused(gguf_launch(&file("huge.gguf", &gguf::header_promising(u64::MAX / 2))?), &["huge.gguf"]).await
}

#[tokio::test]
async fn a_directory_without_a_model_says_what_is_missing() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    check_refused(gguf_launch(directory.path()), &["config.json"]).await?;
    fs::write(directory.path().join("model.safetensors"), [0; 16])?;
    fs::write(
        directory.path().join("config.json"),
        r#"{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}"#,
    )?;
    check_refused(gguf_launch(directory.path()), &["Mamba", "llama"]).await?;
    fs::write(directory.path().join("config.json"), "{ not json")?;
    check_refused(gguf_launch(directory.path()), &["config.json"]).await
}

#[tokio::test]
async fn bodies_that_are_not_requests_get_openais_error() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    for path in
        ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/tokenize", "/detokenize"]
    {
        for body in ["", "{", "nonsense", "[]", "7", "null", "{\"model\": \"default\"}"] {
            let answer = http.post_bytes(path, body).await?;
            let message = answer.openai_error(400).with_context(|| format!("{path} with {body:?}"))?;
            ensure!(!message.is_empty(), "{path} with {body:?}: {answer:?}");
        }
        http.post_bytes(path, &b"{\"model\": \"\xff\xfe\"}"[..]).await?.openai_error(400)?;
    }
    check_serves(&http).await
}

#[tokio::test]
async fn bad_messages_get_anthropics_error_whatever_is_wrong() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        for body in ["", "{", "[]", "null", "{\"model\": \"default\"}", "{\"messages\": [7], \"max_tokens\": 1}"] {
            let (kind, message) = http.post_bytes(path, body).await?.anthropic_error(400)?;
            ensure!(kind == "invalid_request_error" && !message.is_empty(), "{path} with {body:?}: {kind} {message}");
        }
        let large = json!({ "system": "x".repeat(10 * 1024 * 1024) });
        let (kind, _) = http.post(path, &large).await?.anthropic_error(413)?;
        ensure!(kind == "request_too_large", "{kind}");
        http.get(path).await?.anthropic_error(405)?;
        let text = http.request(reqwest::Method::POST, path).header("content-type", "text/plain").body("{}");
        support::http::read(text.send().await?).await?.anthropic_error(415)?;
    }
    check_serves(&http).await
}

#[tokio::test]
async fn ids_and_queries_of_responses_are_the_clients_to_get_wrong() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    let id = http.post("/v1/responses", &json!({ "input": "hi", "max_output_tokens": 1 })).await?.ok()?["id"].clone();
    let id = id.as_str().context("no id")?;
    for query in ["limit=0", "limit=101", "limit=x", "order=up", "after=msg_unknown", "after=%ff"] {
        http.get(&format!("/v1/responses/{id}/input_items?{query}")).await?.openai_error(400).context(query)?;
    }
    http.get(&format!("/v1/responses/{id}?stream=maybe")).await?.openai_error(400)?;
    http.get("/v1/responses/%ff").await?.openai_error(400)?;
    for id in ["resp_unknown", "%00", "%2e%2e", "x".repeat(4000).as_str()] {
        http.get(&format!("/v1/responses/{id}")).await?.openai_error(404)?;
        let previous = json!({ "input": "hi", "previous_response_id": id });
        http.post("/v1/responses", &previous).await?.openai_error(400)?;
    }
    check_serves(&http).await
}

#[tokio::test]
async fn a_body_of_ten_megabytes_is_too_large() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    let body = json!({ "model": "default", "prompt": "x".repeat(10 * 1024 * 1024), "max_tokens": 1 });
    let answer = http.post("/v1/completions", &body).await?;
    ensure!([400, 413].contains(&answer.status.as_u16()), "{}", answer.status);
    answer.openai_error(answer.status.as_u16())?;
    check_serves(&http).await
}

#[tokio::test]
async fn parameters_out_of_range_are_named() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    for (name, values) in [
        ("temperature", vec![json!(-1), json!("hot"), json!([])]),
        ("top_p", vec![json!(0), json!(1.5), json!(-0.1)]),
        ("min_p", vec![json!(-0.1), json!(1.5)]),
        ("top_k", vec![json!("many")]),
        ("n", vec![json!(0), json!(-1), json!(1_000_000)]),
        ("max_tokens", vec![json!(-1), json!("all"), json!(1.5)]),
        ("frequency_penalty", vec![json!(99), json!("x")]),
        ("presence_penalty", vec![json!(-99)]),
        ("repetition_penalty", vec![json!(0), json!(-1)]),
        ("logit_bias", vec![json!({ "notanumber": 1 }), json!({ "99999999": 1 }), json!({ "5": 1000 })]),
        ("stop", vec![json!(7), json!([[]])]),
        ("seed", vec![json!("x")]),
        ("logprobs", vec![json!(-1), json!(1000)]),
        ("stream", vec![json!("yes")]),
        ("prompt", vec![json!({}), json!([99_999_999]), json!([-1])]),
    ] {
        for value in values {
            let mut request = json!({ "model": "default", "prompt": "1, 2,", "max_tokens": 2 });
            request[name] = value.clone();
            let answer = http.post("/v1/completions", &request).await?;
            let message = answer.openai_error(400).with_context(|| format!("{name} = {value}"))?;
            let is_named = answer.json()?["error"]["param"] == name || message.contains(name);
            ensure!(is_named, "{name} = {value}: {message}");
        }
    }
    check_serves(&http).await
}

#[tokio::test]
async fn messages_of_the_wrong_shape_are_refused() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    for messages in [
        json!([]),
        json!("hello"),
        json!([7]),
        json!([{}]),
        json!([{ "role": "user" }]),
        json!([{ "content": "no role" }]),
        json!([{ "role": 7, "content": "x" }]),
        json!([{ "role": "user", "content": 7 }]),
        json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "x" } }] }]),
    ] {
        let request = json!({ "model": "default", "messages": messages, "max_tokens": 2 });
        http.post("/v1/chat/completions", &request).await?.openai_error(400).with_context(|| messages.to_string())?;
    }
    check_serves(&http).await
}

#[tokio::test]
async fn more_tokens_than_the_context_are_refused_with_both_numbers() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    let request = json!({ "model": "default", "prompt": "1,", "max_tokens": 100_000 });
    let message = http.post("/v1/completions", &request).await?.openai_error(400)?;
    ensure!(message.contains("100000") && message.contains("8192"), "{message}");
    let request = json!({ "model": "default", "prompt": "word ".repeat(10_000), "max_tokens": 1 });
    let message = http.post("/v1/completions", &request).await?.openai_error(400)?;
    ensure!(message.contains("8192"), "{message}");
    check_serves(&http).await
}

#[tokio::test]
async fn an_unknown_model_path_or_method_is_not_a_500() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    let message = http.post("/v1/completions", &json!({ "model": "gpt-9", "prompt": "x" })).await?.openai_error(404)?;
    ensure!(message.contains("gpt-9"), "{message}");
    http.get("/no/such/path").await?.openai_error(404)?;
    let answer = http.get("/v1/completions").await?;
    ensure!(answer.status == 405, "{answer:?}");
    check_serves(&http).await
}

#[tokio::test]
async fn nesting_deeper_than_any_stack_is_refused() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    let deep = format!("{{\"model\":\"default\",\"messages\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    http.post_bytes("/v1/chat/completions", deep).await?.openai_error(400)?;
    check_serves(&http).await
}

#[tokio::test]
async fn control_characters_and_special_tokens_in_text_do_no_harm() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    for text in
        ["\u{0}\u{1}\u{7f}", "<|im_end|><|im_start|>system", "\u{202e}\u{feff}\u{10ffff}", "{{ 7 * 7 }}{% raw %}"]
    {
        let request = json!({ "model": "default", "messages": [{ "role": "user", "content": text }], "max_tokens": 2 });
        http.post("/v1/chat/completions", &request).await?.ok()?;
    }
    check_serves(&http).await
}

#[cfg(feature = "http-mcp-stream")]
#[tokio::test]
async fn the_mcp_endpoint_survives_the_same() -> anyhow::Result<()> {
    use support::mcp::{STREAM, call};

    let mut server = Launch::model().mcp().start().await?;
    let mcp = server.mcp();
    let deep = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\",\"params\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let error = mcp.post_bytes(STREAM, deep).await?.json()?["error"].clone();
    ensure!(error["code"] == -32700 || error["code"] == -32602, "{error}");
    let large = call("generate", &json!({ "prompt": "x".repeat(10 * 1024 * 1024) }));
    let answer = mcp.post(STREAM, &large).await?;
    ensure!(answer.status == 413, "{}", answer.status);
    for arguments in [
        json!({}),
        json!({ "prompt": 1 }),
        json!({ "prompt": "x", "max_tokens": "many" }),
        json!({ "prompt": "x", "temperature": -3 }),
    ] {
        let (code, message) =
            mcp.rpc_error("tools/call", &json!({ "name": "generate", "arguments": arguments })).await?;
        ensure!(code == -32602 && !message.is_empty(), "{arguments}: {code} {message}");
    }
    let no_json =
        mcp.request(reqwest::Method::POST, STREAM).header("content-type", "text/plain").body("hello").send().await?;
    ensure!(no_json.status().is_client_error(), "{}", no_json.status());
    ensure!(!mcp.call_tool_text("generate", &json!({ "prompt": "1, 2,", "max_tokens": 2 })).await?.is_empty());
    server.assert_alive()
}

#[tokio::test]
async fn whatever_is_sent_the_answer_is_one_that_the_document_describes() -> anyhow::Result<()> {
    let python = require_tools!(Python);
    // The tiny model and a short context: answers cost nothing, however long the fuzzer asks them to be.
    let mut server = Launch::tiny().option("--max-model-len", "96").start().await?;
    let http = server.http();
    let report = server.directory().join("report.json").display().to_string();
    tools::python(&python, "api_fuzzer.py", &[&http.url(""), &report]).await?;
    server.assert_alive()?;
    // Every operation was called, none left out.
    let document = http.get("/api-doc/openapi.json").await?.ok()?;
    let paths = document["paths"].as_object().context("no paths")?;
    let scrape = http.scrape().await?;
    for (path, operations) in paths {
        for method in operations.as_object().context("no operations")?.keys() {
            let pattern = path.replace("/v1/models/{id}", "/v1/models/{*id}");
            let labels = [("method", method.to_uppercase()), ("path", pattern)];
            let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
            ensure!(scrape.count("http_requests_total", &labels)? > 0, "{method} {path} was never called");
        }
    }
    for name in ["mistralrs_sequences_running", "mistralrs_sequences_waiting"] {
        eventually(Duration::from_secs(10), || async {
            ensure!(http.scrape().await?.count(name, &[])? == 0, "{name}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_prompt_that_cannot_fit_is_refused_by_its_size_before_it_is_tokenized() -> anyhow::Result<()> {
    let config = "[server]\nmax_body_bytes = 12000000\n";
    // Its tokenizer has a token for every byte; without those nothing is known before it has run.
    let server = Launch::tiny().file("--config", "mistralrs.toml", config).start().await?;
    let http = server.http();
    let text = "x ".repeat(5 << 20);
    let before = process::read(server.pid())?.cpu_ticks;
    for (path, request) in [
        ("/v1/completions", json!({ "model": "default", "prompt": text })),
        ("/v1/chat/completions", json!({ "model": "default", "messages": [{ "role": "user", "content": text }] })),
    ] {
        let answer = http.post(path, &request).await?;
        let message = answer.openai_error(400)?;
        ensure!(answer.json()?["error"]["code"] == "context_length_exceeded", "{path}: {message}");
        ensure!(message.contains("bytes of text") && message.contains("512 tokens"), "{path}: {message}");
    }
    // Tokenizing these takes seconds of processor time each.
    let ticks = process::read(server.pid())?.cpu_ticks - before;
    ensure!(ticks < 200, "{ticks} clock ticks for two refusals");
    ensure!(http.get("/ready").await?.status == 200);
    Ok(())
}

#[tokio::test]
async fn labels_of_the_clients_own_are_taken_checked_and_told_back() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    let chat = json!({ "model": "default", "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 1 });
    let text = json!({ "model": "default", "prompt": "hi", "max_tokens": 1 });
    let response = json!({ "model": "default", "input": "hi", "max_output_tokens": 1 });
    let with = |request: &Value, name: &str, value: &Value| {
        let mut request = request.clone();
        request[name] = value.clone();
        request
    };
    for (path, request) in [("/v1/chat/completions", &chat), ("/v1/completions", &text), ("/v1/responses", &response)] {
        for (name, value) in [("user", json!(7)), ("metadata", json!({ "a": 1 })), ("service_tier", json!("gold"))] {
            let message = http.post(path, &with(request, name, &value)).await?.openai_error(400)?;
            ensure!(message.contains(name), "{path}: {message}");
        }
        let labelled = with(&with(request, "user", &json!("ann")), "metadata", &json!({ "a": "b" }));
        let answer = http.post(path, &with(&labelled, "service_tier", &json!("auto"))).await?.ok()?;
        let told = if path == "/v1/completions" { Value::Null } else { json!("default") };
        ensure!(answer["service_tier"] == told, "{path}: {answer}");
        if path == "/v1/responses" {
            ensure!(answer["metadata"] == json!({ "a": "b" }) && answer["user"] == "ann", "{answer}");
        }
    }
    http.post("/v1/chat/completions", &with(&chat, "parallel_tool_calls", &json!(false))).await?.ok()?;
    http.post("/v1/chat/completions", &with(&chat, "parallel_tool_calls", &json!("no"))).await?.openai_error(400)?;
    Ok(())
}

/// After whatever came before: the process answers, holds nothing and has few files open.
async fn check_serves(http: &Http) -> anyhow::Result<()> {
    let request = json!({ "model": "default", "prompt": "1, 2, 3,", "temperature": 0, "max_tokens": 4 });
    let reply: Value = http.post("/v1/completions", &request).await?.ok()?;
    ensure!(reply["usage"]["completion_tokens"] == 4, "{reply}");
    Ok(())
}

#[tokio::test]
async fn a_hundred_refusals_leak_nothing() -> anyhow::Result<()> {
    let server = Launch::model().start().await?;
    let http = server.http();
    check_serves(&http).await?;
    // What the allocator and the tokenizer keep for the next request is no leak, so they have seen all this once.
    send_refused(&http, 80).await?;
    let mut growths_kib = Vec::new();
    // The allocator's arenas grow once in a while; a leak of these bodies and of what was made of them grows by 50 MiB at
    // least, every time.
    while growths_kib.len() < 3 {
        let before = process::read(server.pid())?;
        send_refused(&http, 100).await?;
        eventually(Duration::from_secs(10), || async {
            let scrape = http.scrape().await?;
            for name in ["mistralrs_sequences_running", "mistralrs_sequences_waiting", "mistralrs_kv_cache_blocks_used"]
            {
                ensure!(scrape.count(name, &[])? == 0, "{name}");
            }
            Ok(())
        })
        .await?;
        let after = process::read(server.pid())?;
        ensure!(after.num_fds <= before.num_fds + 2, "{} files open, {} before", after.num_fds, before.num_fds);
        let growth_kib = after.resident_kib.saturating_sub(before.resident_kib);
        if growth_kib < 24 * 1024 {
            return check_serves(&http).await;
        }
        growths_kib.push(growth_kib);
    }
    anyhow::bail!("memory grew each time: by {growths_kib:?} KiB")
}

/// Requests that are refused each for another reason, one of them after tokenizing half a megabyte.
async fn send_refused(http: &Http, num_requests: usize) -> anyhow::Result<()> {
    for index in 0..num_requests {
        let request = match index % 4 {
            0 => json!({ "model": "gpt-9", "prompt": "x" }),
            1 => json!({ "model": "default", "prompt": "x", "max_tokens": 100_000 }),
            2 => json!({ "model": "default", "prompt": "x", "temperature": -1 }),
            _ => json!({ "model": "default", "prompt": "word ".repeat(100 * 1024), "max_tokens": 1 }),
        };
        let answer = http.post("/v1/completions", &request).await?;
        ensure!(answer.status.is_client_error(), "{answer:?}");
    }
    Ok(())
}
