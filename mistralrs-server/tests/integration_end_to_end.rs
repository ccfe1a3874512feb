//! The whole road: a real model behind the real binary, driven by clients that no one here wrote and by plain HTTP.

#[cfg(feature = "tool-forwarding")]
#[path = "integration_end_to_end/metrics_page.rs"]
mod metrics_page;
mod support;

use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::{join_all, try_join_all};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use support::process::{self, eventually};
use support::random::Random;
use support::server::{Server, Shared};
use support::{Http, Launch, sse, tools};

/// For tests that ask for answers only; those that count sequences or blocks have a server of their own.
static SHARED: Shared = Shared::new(|| Launch::model().option("--max-seqs", "16"));

/// How long the engine may take to notice what happened: a step or two on a loaded machine.
const SETTLING: Duration = Duration::from_mins(1);

/// Each is a function of the same name in a script of tests/support/python.
macro_rules! scenarios {
    ($script:literal: $($scenario:ident),+ $(,)?) => {$(
        #[tokio::test]
        async fn $scenario() -> anyhow::Result<()> {
            let python = require_tools!(Python);
            let server = SHARED.get().await?;
            client(&python, &server, $script, stringify!($scenario)).await
        }
    )+};
}

scenarios!("openai_client.py":
    chat_answers_a_question,
    stream_gives_the_same_text,
    stream_without_options_has_no_usage,
    completions_continue_a_text,
    several_prompts_give_several_choices,
    several_choices_differ_and_keep_their_index,
    seeds_reproduce_and_differ,
    logprobs_describe_the_text,
    stop_strings_end_the_text_before_them,
    logit_bias_forbids_a_token,
    embeddings_are_the_same_in_both_encodings_and_in_any_company,
    embeddings_take_tokens_and_can_be_cut,
    errors_of_embeddings_arrive_as_the_right_exceptions,
    models_are_listed_and_retrieved,
    errors_arrive_as_the_right_exceptions,
);

scenarios!("responses_client.py":
    a_response_answers_a_question,
    a_response_streams_its_stages_and_the_same_text,
    a_response_is_retrieved_and_deleted,
    a_conversation_goes_on_by_the_id_of_its_last_response,
    errors_of_responses_arrive_as_the_right_exceptions,
);

scenarios!("anthropic_client.py":
    a_message_answers_a_question,
    a_message_ends_at_its_limit_or_at_a_stop_sequence,
    a_message_streams_the_same_text,
    the_system_and_earlier_turns_are_heard,
    errors_of_messages_arrive_as_the_right_exceptions,
);

scenarios!("agent_client.py": an_agent_talks_over_chat_completions, an_agent_talks_over_responses);

#[tokio::test]
async fn run_selects_the_format_of_a_local_file_by_itself() -> anyhow::Result<()> {
    let model = tools::smollm2();
    let server = Launch::default().selector(["run".as_ref(), "-m".as_ref(), model.as_os_str()]).start().await?;
    let text = complete(&server.http(), &greedy("1, 2, 3, 4, 5, 6,", 8)).await?;
    ensure!(text.contains('7'), "{text:?}");
    Ok(())
}

#[tokio::test]
async fn tokenize_and_detokenize_are_inverse() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    for text in ["Hello world", "Grüße, 世界! 🦀", " leading and trailing ", "line\nbreak\t"] {
        let tokens = http.post("/tokenize", &json!({ "prompt": text, "add_special_tokens": false })).await?.ok()?;
        let ids = tokens["tokens"].as_array().with_context(|| format!("no `tokens`: {tokens}"))?;
        ensure!(tokens["count"] == ids.len(), "{tokens}");
        let back = http.post("/detokenize", &json!({ "tokens": ids })).await?.ok()?;
        ensure!(back["prompt"] == text, "{text:?} came back as {back}");
    }
    Ok(())
}

#[tokio::test]
async fn requests_together_give_what_each_gives_alone() -> anyhow::Result<()> {
    // A budget of 48 tokens makes every step a mixture of decodes and pieces of prompts.
    let launch = Launch::model().option("--prefix-cache-n", "0").option("--max-num-batched-tokens", "48");
    let launch = launch.option("--threads", "2");
    let server = launch.start().await?;
    check_together_equals_alone(&server.http(), 8).await
}

#[tokio::test]
async fn requests_together_give_the_same_under_preemption_and_with_prefix_hits() -> anyhow::Result<()> {
    // 6 MiB hold some 180 tokens of SmolLM2: the eight requests below need twice that. Answers of
    // several blocks, so that each outgrows the one block that admission keeps free for it.
    let launch = Launch::model().option("--pa-memory-mb", "6").option("--pa-block-size", "8");
    let server = launch.start().await?;
    let http = server.http();
    check_together_equals_alone(&http, 40).await?;
    let scrape = http.scrape().await?;
    ensure!(scrape.count("mistralrs_paged_preemptions_total", &[])? > 0, "nothing was preempted");
    ensure!(scrape.count("mistralrs_prefix_cache_hits_total", &[])? > 0, "nothing came from the prefix cache");
    ensure!(scrape.count("mistralrs_prefix_cache_evictions_total", &[])? > 0, "nothing was evicted");
    check_nothing_is_held(&http).await
}

#[tokio::test]
async fn a_draft_model_changes_no_answer() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let drafting = Launch::model().option("--draft-model", tools::smollm2()).start().await?;
    ensure!(drafting.log().contains("the draft model is loaded"), "{}", drafting.log());
    for temperature in [0.0, 0.8] {
        let mut request = greedy("The three largest cities of Europe are", 60);
        request["temperature"] = json!(temperature);
        request["seed"] = json!(7);
        let plain = complete_tokens(&server.http(), &request).await?;
        let drafted = complete_tokens(&drafting.http(), &request).await?;
        ensure!(plain == drafted, "at {temperature}\nwithout {plain:?}\nwith    {drafted:?}");
    }
    check_nothing_is_held(&drafting.http()).await?;
    let scrape = drafting.http().scrape().await?;
    ensure!(scrape.require("mistralrs_speculative_draft_blocks_used", &[])? == 0.0, "the draft model holds blocks");
    Ok(())
}

#[tokio::test]
async fn a_prompt_sent_again_comes_from_the_prefix_cache() -> anyhow::Result<()> {
    let server = Launch::model().option("--pa-block-size", "16").start().await?;
    let http = server.http();
    let request = greedy(&sentence(80), 12);
    let first = http.post("/v1/completions", &request).await?.ok()?;
    let hits_before = http.scrape().await?.require("mistralrs_prefix_cache_hits_total", &[])?;
    let second = http.post("/v1/completions", &request).await?.ok()?;
    ensure!(first["choices"][0]["text"] == second["choices"][0]["text"], "{first} {second}");
    ensure!(
        http.scrape().await?.require("mistralrs_prefix_cache_hits_total", &[])? > hits_before,
        "no hit was counted"
    );
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or_default();
    let prompt = second["usage"]["prompt_tokens"].as_u64().unwrap_or_default();
    ensure!(cached > prompt / 2 && cached < prompt, "{cached} of {prompt} tokens were cached");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_that_leave_at_random_leave_nothing_behind() -> anyhow::Result<()> {
    let server = Launch::model().option("--max-seqs", "8").start().await?;
    let http = server.http();
    let text_before = complete(&http, &greedy("1, 2, 3, 4, 5, 6,", 8)).await?;
    let files_before = process::read(server.pid())?.num_fds;

    let mut random = Random::new(200);
    let clients = (0..200).map(|index| {
        let (arrives_ms, stays_ms) = (random.below(1500), random.below(2000));
        let (http, prompt) = (http.clone(), sentence(2 + random.below(20) as usize));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(arrives_ms)).await;
            let stay = leave_after(&http, index % 2 == 0, &prompt);
            // Dropping the request closes its connection, whether it streams, runs or still waits.
            let _ = tokio::time::timeout(Duration::from_millis(stays_ms), stay).await;
        })
    });
    join_all(clients.collect::<Vec<_>>()).await;

    check_nothing_is_held(&http).await?;
    let scrape = http.scrape().await?;
    let cancelled = scrape.count("mistralrs_sequences_completed_total", &[("reason", "cancelled")])?;
    println!("{cancelled} of 200 clients left after they had been taken in");
    ensure!(cancelled > 50, "{cancelled} clients left while they were served or waited: {:#?}", scrape.samples);
    ensure!(
        complete(&http, &greedy("1, 2, 3, 4, 5, 6,", 8)).await? == text_before,
        "the next request is not served as before"
    );
    eventually(SETTLING, || async {
        let files = process::read(server.pid())?.num_fds;
        // The test's own kept-alive connections come on top.
        ensure!(files <= files_before + 8, "{files} open files, {files_before} before");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_idle_server_uses_no_cpu() -> anyhow::Result<()> {
    let server = Launch::model().mcp().start().await?;
    complete(&server.http(), &greedy("1, 2, 3,", 8)).await?;
    // A spinning thread spins in every window; the machine's own noise does not reach all of them.
    let mut quietest = u64::MAX;
    for _ in 0..5 {
        let before = process::read(server.pid())?.cpu_ticks;
        tokio::time::sleep(Duration::from_secs(2)).await;
        quietest = quietest.min(process::read(server.pid())?.cpu_ticks - before);
        if quietest <= 1 {
            return Ok(());
        }
    }
    anyhow::bail!("{quietest} of 200 clock ticks in the quietest of five idle windows")
}

#[tokio::test]
async fn the_server_says_when_it_is_ready() -> anyhow::Result<()> {
    let server = Launch::model().start().await?;
    println!("start to /ready: {:?}", server.ready_after());
    ensure!(server.http().get("/health").await?.status == 200);
    ensure!(server.http().get("/ready").await?.status == 200);
    Ok(())
}

#[tokio::test]
async fn sigterm_lets_a_running_stream_end_and_then_exits() -> anyhow::Result<()> {
    let mut server = Launch::model().mcp().start().await?;
    let http = server.http();
    let mut request = greedy("Once upon a time", 60);
    request["stream"] = json!(true);
    request["ignore_eos"] = json!(true);
    let mut response = http.open("/v1/completions", &request).await?;
    let mut reader = sse::Reader::default();
    let mut events = reader.push(&response.chunk().await?.context("the stream ended at once")?)?;

    server.terminate()?;
    while let Some(bytes) = response.chunk().await? {
        events.extend(reader.push(&bytes)?);
    }
    ensure!(events.last().is_some_and(|event| event.data == "[DONE]"), "the stream was cut: {:?}", events.last());
    let reasons =
        events.iter().filter_map(|event| event.json().ok()?["choices"][0]["finish_reason"].as_str().map(str::to_owned));
    ensure!(reasons.collect::<Vec<_>>() == ["length"], "the text was not finished");
    let status = server.wait_for_exit(SETTLING).await?;
    ensure!(status.success(), "exit status {status}");
    Ok(())
}

#[tokio::test]
async fn a_full_queue_is_refused_with_a_time_to_come_back() -> anyhow::Result<()> {
    let server = Launch::model().option("--max-seqs", "1").start().await?;
    let http = server.http();
    let mut endless = greedy("Once upon a time", 1500);
    endless["ignore_eos"] = json!(true);
    // 256 may wait: of 300 requests that cannot end soon, dozens find the queue full.
    let mut waiting = Vec::new();
    for _ in 0..300 {
        let (http, request) = (http.clone(), endless.clone());
        waiting.push(tokio::spawn(async move { http.post("/v1/completions", &request).await }));
    }
    // One that is not answered at once has found a place, and keeps it.
    let refused = loop {
        ensure!(waiting.len() < 320, "nobody is refused");
        let (http, request) = (http.clone(), endless.clone());
        let mut next = tokio::spawn(async move { http.post("/v1/completions", &request).await });
        match tokio::time::timeout(Duration::from_secs(1), &mut next).await {
            Ok(answer) => break answer??,
            Err(_) => waiting.push(next),
        }
    };
    refused.openai_error(503)?;
    ensure!(refused.header("retry-after").parse::<u64>()? >= 1, "Retry-After: {:?}", refused.header("retry-after"));
    ensure!(http.scrape().await?.count("mistralrs_sequences_rejected_total", &[])? > 0);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    check_nothing_is_held(&http).await
}

#[tokio::test]
async fn real_clients_come_back_until_the_queue_has_room() -> anyhow::Result<()> {
    let python = require_tools!(Python);
    // One sequence and one place to wait: of ten clients at once, eight must come back.
    let launch = Launch::model().option("--max-seqs", "1").file(
        "--config",
        "mistralrs.toml",
        "[engine]\nmax_waiting_requests = 1\n",
    );
    let server = launch.start().await?;
    let mut num_refused = 0;
    for (script, scenario) in [
        ("openai_client.py", "full_queue_is_retried_until_served"),
        ("responses_client.py", "a_full_queue_is_waited_out"),
        ("anthropic_client.py", "a_full_queue_is_waited_out"),
    ] {
        client(&python, &server, script, scenario).await?;
        let refused = server.http().scrape().await?.count("mistralrs_sequences_rejected_total", &[])?;
        ensure!(refused > num_refused, "{script}: nobody had to");
        num_refused = refused;
    }
    Ok(())
}

#[tokio::test]
async fn background_responses_run_without_a_client_and_leave_nothing_behind() -> anyhow::Result<()> {
    let python = require_tools!(Python);
    let server = Launch::model().start().await?;
    let scenario = "a_background_response_runs_until_it_ends_or_is_cancelled";
    client(&python, &server, "responses_client.py", scenario).await?;
    check_nothing_is_held(&server.http()).await
}

#[tokio::test]
async fn background_responses_are_limited_in_number() -> anyhow::Result<()> {
    let config = "[server.responses]\nmax_background = 1\n";
    let server = Launch::model().file("--config", "mistralrs.toml", config).start().await?;
    let http = server.http();
    let endless = json!({ "input": "hi", "background": true, "ignore_eos": true, "max_output_tokens": 4000 });
    let first = http.post("/v1/responses", &endless).await?.ok()?;
    let refused = http.post("/v1/responses", &endless).await?;
    refused.openai_error(503)?;
    ensure!(refused.header("retry-after").parse::<u64>()? >= 1, "{refused:?}");
    let id = first["id"].as_str().context("no id")?;
    http.post(&format!("/v1/responses/{id}/cancel"), &json!({})).await?.ok()?;
    check_nothing_is_held(&http).await
}

#[tokio::test]
async fn clients_that_leave_responses_and_messages_leave_nothing_behind() -> anyhow::Result<()> {
    let server = Launch::model().start().await?;
    let http = server.http();
    for (path, request) in endless_streams() {
        let mut response = http.open(path, &request).await?;
        response.chunk().await?.with_context(|| format!("{path}: the stream ended at once"))?;
        drop(response);
        check_nothing_is_held(&http).await.context(path)?;
    }
    let batch = json!({ "model": "default", "input": vec![sentence(200); 300] });
    let embeddings = http.post("/v1/embeddings", &batch);
    ensure!(tokio::time::timeout(Duration::from_secs(2), embeddings).await.is_err(), "the batch ended at once");
    check_nothing_is_held(&http).await.context("embeddings")
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_leaves_nothing_behind() -> anyhow::Result<()> {
    let config = "[server]\nwrite_timeout_secs = 1\n";
    let server = Launch::tiny().file("--config", "mistralrs.toml", config).start().await?;
    let http = server.http();
    // A small window here and long events there, so that the kernel's buffers on both sides are full soon.
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut connection = socket.connect(([127, 0, 0, 1], server.port()).into()).await?;
    let body = json!({ "messages": [{ "role": "user", "content": "hi" }], "stream": true, "ignore_eos": true, "n": 32,
        "max_tokens": 400, "logprobs": true, "top_logprobs": 20 })
    .to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
    connection.write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    let in_flight = [("path", "/v1/chat/completions")];
    eventually(SETTLING, || async {
        ensure!(http.scrape().await?.count("http_requests_in_flight", &in_flight)? == 1, "it has not arrived");
        Ok(())
    })
    .await?;
    eventually(SETTLING, || async {
        ensure!(http.scrape().await?.count("http_requests_in_flight", &in_flight)? == 0, "it is still served");
        Ok(())
    })
    .await?;
    let left = server.log().lines().any(|line| line.contains("client_left") && line.contains("/v1/chat/completions"));
    ensure!(left, "the log does not say so");
    // The answer was not sent as a whole: its end is missing.
    let mut rest = Vec::new();
    let _ = connection.read_to_end(&mut rest).await;
    ensure!(!String::from_utf8_lossy(&rest).contains("[DONE]"), "{} bytes were sent, to the end", rest.len());
    check_nothing_is_held(&http).await
}

#[tokio::test]
async fn streams_that_the_drain_cuts_off_end_with_an_error_in_their_own_shape() -> anyhow::Result<()> {
    let config = "[server]\ndrain_timeout_secs = 0\n";
    let mut server = Launch::model().file("--config", "mistralrs.toml", config).start().await?;
    let http = server.http();
    let mut responses = Vec::new();
    for (path, request) in endless_streams() {
        let mut response = http.open(path, &request).await?;
        let beginning = response.chunk().await?.with_context(|| format!("{path}: the stream ended at once"))?;
        responses.push((beginning, response));
    }
    server.terminate()?;
    let mut ends = Vec::new();
    for (beginning, mut response) in responses {
        let mut reader = sse::Reader::default();
        let mut events = reader.push(&beginning)?;
        while let Some(bytes) = response.chunk().await? {
            events.extend(reader.push(&bytes)?);
        }
        ends.push(ending(&events));
    }
    let expected =
        ["message the server is shutting down | [DONE]", "response.failed the server is shutting down | [DONE]"];
    ensure!(ends[..2] == expected && ends[2].ends_with("| error the server is shutting down"), "{ends:#?}");
    ensure!(server.wait_for_exit(SETTLING).await?.success());
    Ok(())
}

#[tokio::test]
async fn streams_that_take_too_long_end_with_an_error_in_their_own_shape() -> anyhow::Result<()> {
    let config = "[server]\nrequest_timeout_secs = 1\n";
    let server = Launch::model().file("--config", "mistralrs.toml", config).start().await?;
    let http = server.http();
    let mut ends = Vec::new();
    for (path, request) in endless_streams() {
        ends.push(ending(&sse::read_all(http.open(path, &request).await?).await?));
    }
    let late = "the answer was not complete within 1s, which is the limit of this server";
    let expected = [format!("message {late} | [DONE]"), format!("response.failed {late} | [DONE]")];
    ensure!(ends[..2] == expected && ends[2].ends_with(&format!("| error {late}")), "{ends:#?}");
    Ok(())
}

/// Streams of each shape that do not end by themselves while a test looks.
fn endless_streams() -> [(&'static str, Value); 3] {
    let message = json!([{ "role": "user", "content": "Tell me a story." }]);
    let endless = |field: &str, value: &Value, limit: &str| {
        let mut request = json!({ "model": "default", "temperature": 0, "ignore_eos": true, "stream": true });
        request[field] = value.clone();
        request[limit] = json!(6000);
        request
    };
    [
        ("/v1/chat/completions", endless("messages", &message, "max_tokens")),
        ("/v1/responses", endless("input", &message, "max_output_tokens")),
        ("/v1/messages", endless("messages", &message, "max_tokens")),
    ]
}

/// The last two events: names, then what they say of an error.
fn ending(events: &[sse::Event]) -> String {
    let describe = |event: &sse::Event| match event.json() {
        Ok(json) => {
            let message = [&json["response"]["error"]["message"], &json["error"]["message"]].map(Value::as_str);
            format!("{} {}", event.name, message.into_iter().flatten().next().unwrap_or_default())
        }
        Err(_) => event.data.clone(),
    };
    events.iter().rev().take(2).rev().map(describe).collect::<Vec<_>>().join(" | ")
}

#[cfg(feature = "http-mcp-stream")]
#[tokio::test]
async fn the_gateway_alone_needs_no_model_and_little_memory() -> anyhow::Result<()> {
    let server = Launch::gateway().start().await?;
    let answer = server.mcp().rpc("tools/list", &json!({})).await?;
    ensure!(answer["tools"].is_array(), "{answer}");
    server.http().post("/v1/completions", &greedy("1,", 1)).await?.openai_error(404)?;
    let resident = process::read(server.pid())?.resident_kib;
    println!("gateway alone: {resident} KiB resident");
    ensure!(resident < 100 * 1024, "{resident} KiB resident without a model");
    Ok(())
}

#[tokio::test]
async fn best_of_sends_the_likeliest_of_the_choices_it_generates() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let http = server.http();
    let mut request = greedy("The old people say that the river", 10);
    for (name, value) in [("temperature", json!(1)), ("seed", json!(11)), ("n", json!(4)), ("logprobs", json!(0))] {
        request[name] = value;
    }
    request["ignore_eos"] = json!(true);
    let all = http.post("/v1/completions", &request).await?.ok()?;
    let mean = |choice: &Value| {
        let logprobs = choice["logprobs"]["token_logprobs"].as_array().map_or(&[][..], Vec::as_slice);
        logprobs.iter().filter_map(Value::as_f64).sum::<f64>() / logprobs.len() as f64
    };
    let mut ranked = all["choices"].as_array().context("no choices")?.clone();
    ranked.sort_by(|left, right| mean(right).total_cmp(&mean(left)));
    let texts = |choices: &[Value]| choices.iter().map(|choice| choice["text"].clone()).collect::<Vec<_>>();

    request["n"] = json!(2);
    request["best_of"] = json!(4);
    request["logprobs"] = Value::Null;
    let best = http.post("/v1/completions", &request).await?.ok()?;
    let sent = best["choices"].as_array().context("no choices")?;
    ensure!(texts(sent) == texts(&ranked[..2]), "{best}\n{ranked:#?}");
    ensure!(sent[0]["index"] == 0 && sent[1]["index"] == 1 && sent[0]["logprobs"].is_null(), "{best}");
    ensure!(best["usage"]["completion_tokens"] == 40, "all four were generated: {best}");
    Ok(())
}

#[tokio::test]
async fn bench_measures_a_model_in_its_own_process() -> anyhow::Result<()> {
    let arguments = ["--concurrency", "1,3", "--prefix-cache", "both", "--shared-prefix-tokens", "64"];
    let (status, report) = bench(&arguments.map(str::to_owned)).await?;
    ensure!(status.success(), "{status}");
    ensure!(report["target"] == json!({ "kind": "in_process", "model": "tiny-llama" }), "{report}");
    let runs = report["runs"].as_array().context("no runs")?;
    let setting = |run: &Value| (run["prefix_cache"].clone(), run["concurrency"].clone());
    let settings =
        [("off", 1), ("off", 3), ("on", 1), ("on", 3)].map(|(cache, streams)| (json!(cache), json!(streams)));
    ensure!(runs.iter().map(setting).collect::<Vec<_>>() == settings, "{report}");
    for run in runs {
        check_bench_counts(run, 64 + 16)?;
        let cached = run["tokens"]["cached_tokens"].as_u64();
        // Whole blocks of 32 tokens of the shared 64, for each of six requests; none where nothing is kept.
        let expected = if run["prefix_cache"] == "on" { 6 * 64 } else { 0 };
        ensure!(cached == Some(expected), "{run}");
    }
    Ok(())
}

#[tokio::test]
async fn bench_measures_a_server_over_http() -> anyhow::Result<()> {
    let server =
        Launch::default().selector(["plain".as_ref(), "-m".as_ref(), tools::tiny_llama().as_os_str()]).start().await?;
    let url = ["--url".to_owned(), server.http().url("/v1"), "--model".to_owned(), "tiny-llama".to_owned()];
    let (status, report) = bench(&[&url[..2], &["--concurrency".to_owned(), "2".to_owned()]].concat()).await?;
    ensure!(status.success(), "{status}");
    ensure!(report["target"]["kind"] == "http" && report["target"]["model"] == "tiny-llama", "{report}");
    let run = &report["runs"][0];
    check_bench_counts(run, 0)?;
    ensure!(run["prefix_cache"] == "server" && run["concurrency"] == 2, "{run}");

    let (status, report) = bench(&[&url[..], &["--rate".to_owned(), "50".to_owned()]].concat()).await?;
    ensure!(status.success(), "{status}");
    let run = &report["runs"][0];
    check_bench_counts(run, 0)?;
    ensure!(run["concurrency"].is_null() && run["offered_rate"].as_f64() > Some(1.0), "{run}");

    let (status, report) = bench(&[&url[..2], &["--model".to_owned(), "another".to_owned()]].concat()).await?;
    ensure!(!status.success(), "nothing was answered, and that is no success");
    ensure!(report["runs"][0]["requests"] == json!({ "ok": 0, "failed": 6, "refused": 0 }), "{report}");
    ensure!(report["runs"][0]["errors"][0].as_str().is_some_and(|error| error.contains("404")), "{report}");
    Ok(())
}

/// Runs `bench` with `arguments`, few requests and few tokens; without `--url` it loads the tiny model.
async fn bench(arguments: &[String]) -> anyhow::Result<(std::process::ExitStatus, Value)> {
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("report.json").display().to_string();
    let mut words = ["bench", "--format", "json", "--output", &output, "--requests", "6", "--warmup", "1"]
        .map(str::to_owned)
        .to_vec();
    words.extend(["--prompt-tokens", "16", "--max-tokens", "4"].map(str::to_owned));
    if !arguments.iter().any(|argument| argument == "--url") {
        words.extend(["-m".to_owned(), tools::tiny_llama().display().to_string()]);
    }
    words.extend_from_slice(arguments);
    let (status, log) = Launch::default().selector(words).run_to_exit().await?;
    let report = std::fs::read_to_string(&output).with_context(|| format!("no report; the log says:\n{log}"))?;
    Ok((status, serde_json::from_str(&report)?))
}

/// All six requests were answered, to the token; prompts have `prompt_tokens` tokens, if that is known.
fn check_bench_counts(run: &Value, prompt_tokens: u64) -> anyhow::Result<()> {
    ensure!(run["requests"] == json!({ "ok": 6, "failed": 0, "refused": 0 }), "{run}");
    ensure!(run["errors"] == json!([]), "{run}");
    ensure!(run["tokens"]["completion_tokens"] == 6 * 4, "{run}");
    let found = run["tokens"]["prompt_tokens"].as_u64().context("no prompt tokens")?;
    ensure!(if prompt_tokens > 0 { found == 6 * prompt_tokens } else { found >= 6 * 16 }, "{run}");
    ensure!(run["wall_seconds"].as_f64() > Some(0.0) && run["served_rate"].as_f64() > Some(0.0), "{run}");
    Ok(())
}

/// Eight requests of 1 to 64 prompt tokens, half greedy, half sampled with a seed.
async fn check_together_equals_alone(http: &Http, min_answer_tokens: usize) -> anyhow::Result<()> {
    let requests: Vec<Value> = (0..8)
        .map(|index| {
            let mut request = greedy(&sentence(1 + index * 9), min_answer_tokens + 2 * index);
            request["ignore_eos"] = json!(true);
            if index % 2 == 1 {
                request["temperature"] = json!(0.9);
                request["top_p"] = json!(0.95);
                request["seed"] = json!(1000 + index);
            }
            if index % 4 >= 2 {
                for (name, value) in [("dry_multiplier", 0.8), ("xtc_probability", 0.5), ("typical_p", 0.95)] {
                    request[name] = json!(value);
                }
            }
            request
        })
        .collect();
    let mut alone = Vec::new();
    for request in &requests {
        alone.push(complete_tokens(http, request).await?);
    }
    let together = try_join_all(requests.iter().map(|request| complete_tokens(http, request))).await?;
    for (index, (alone, together)) in alone.iter().zip(&together).enumerate() {
        ensure!(alone == together, "request {index}\nalone    {alone:?}\ntogether {together:?}");
    }
    Ok(())
}

/// No sequence runs or waits, and no block is held but for its contents.
async fn check_nothing_is_held(http: &Http) -> anyhow::Result<()> {
    // Once a request is answered, the engine has seen all that came before it: gauges are as of its last step.
    eventually(SETTLING, || async { complete(http, &greedy("1,", 1)).await }).await?;
    eventually(SETTLING, || async {
        let scrape = http.scrape().await?;
        for name in ["mistralrs_sequences_running", "mistralrs_sequences_waiting", "mistralrs_kv_cache_blocks_used"] {
            let value = scrape.require(name, &[])?;
            ensure!(value == 0.0, "{name} is {value}");
        }
        Ok(())
    })
    .await
}

/// Asks for far more than it will stay for.
async fn leave_after(http: &Http, is_streaming: bool, prompt: &str) -> anyhow::Result<()> {
    let mut request = greedy(prompt, 1500);
    request["ignore_eos"] = json!(true);
    request["stream"] = json!(is_streaming);
    let mut response = http.open("/v1/completions", &request).await?;
    while response.chunk().await?.is_some() {}
    Ok(())
}

/// Runs a scenario of a client that no one here wrote.
async fn client(python: &std::path::Path, server: &Server, script: &str, scenario: &str) -> anyhow::Result<()> {
    tools::python(python, script, &[&server.http().url("/v1"), scenario]).await.map(drop)
}

async fn complete(http: &Http, request: &Value) -> anyhow::Result<String> {
    let reply = http.post("/v1/completions", request).await?.ok()?;
    Ok(reply["choices"][0]["text"].as_str().with_context(|| format!("no text: {reply}"))?.to_owned())
}

/// The answer token by token: two texts may be equal and their tokens not.
async fn complete_tokens(http: &Http, request: &Value) -> anyhow::Result<Vec<Value>> {
    let mut request = request.clone();
    request["logprobs"] = json!(1);
    let reply = http.post("/v1/completions", &request).await?.ok()?;
    let tokens = reply["choices"][0]["logprobs"]["tokens"].as_array();
    Ok(tokens.with_context(|| format!("no tokens: {reply}"))?.clone())
}

fn greedy(prompt: &str, max_tokens: usize) -> Value {
    json!({ "model": "default", "prompt": prompt, "temperature": 0, "max_tokens": max_tokens })
}

/// About `num_words` tokens of plain English.
fn sentence(num_words: usize) -> String {
    const WORDS: [&str; 11] = ["the", "river", "was", "cold", "and", "old", "people", "say", "that", "it", "sings"];
    (0..num_words).map(|index| WORDS[index * index % 11]).collect::<Vec<_>>().join(" ")
}
