//! The gateway between real transports: children that misbehave (`fixtures/stdio_server.py`), an HTTP server that
//! forgets its sessions, and a downstream that speaks lines of JSON.
#![cfg(feature = "tool-forwarding")]
#![expect(clippy::unwrap_used, reason = "what these helpers unwrap is the test itself")]

#[path = "gateway/authorization.rs"]
mod authorization;
#[path = "gateway/faults.rs"]
mod faults;
#[path = "gateway/natives.rs"]
mod natives;
#[path = "gateway/passing_through.rs"]
mod passing_through;
#[path = "gateway/sampling.rs"]
mod sampling;
mod support;
#[path = "gateway/url_transports.rs"]
mod url_transports;

use std::time::{Duration, Instant};

use mistralrs_mcp::config::{GatewayConfig, McpClientConfig, SecurityConfig, ToolForwardingConfig};
use mistralrs_mcp::mcp_server::answer;
use mistralrs_mcp::rmcp::model::CallToolResult;
use serde_json::json;

use support::downstream::Downstream;
use support::http_upstream::HttpUpstream;
use support::{Setup, child, eventually, text_of};

#[tokio::test]
async fn one_dead_upstream_leaves_the_others_working() {
    let mut setup = Setup::new();
    setup.upstream(child("fails", &["--exit-at-start"]));
    setup.upstream(support::command("missing", "no-such-program"));
    setup.upstream(support::url("nobody", "http://127.0.0.1:1/mcp"));
    setup.upstream(child("works", &[]));
    let gateway = setup.start().await;
    let names = gateway.names();
    assert!(names.len() > 2 && names[2..].iter().all(|name| name.starts_with("works::")), "{names:?}");
    assert_eq!(gateway.call_text("works::echo", json!({"a": 1})).await, r#"{"a": 1}"#);
    let metrics = gateway.metrics();
    for (upstream, is_up) in [("fails", 0), ("missing", 0), ("nobody", 0), ("works", 1)] {
        assert!(metrics.contains(&format!("mistralrs_upstream_up{{upstream=\"{upstream}\"}} {is_up}")), "{metrics}");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_child_that_was_killed_is_started_again_by_the_next_call() {
    let gateway = Setup::new().with(child("u", &[])).start().await;
    let first = gateway.call_text("u::pid", json!({})).await;
    support::kill(&first);
    // Before the gateway knows, a call could be lost with the child; that is another test.
    let is_down = || gateway.metrics().contains("mistralrs_upstream_up{upstream=\"u\"} 0");
    eventually("the gateway noticed", is_down).await;
    let second = gateway.call_text("u::pid", json!({})).await;
    assert_ne!(first, second);
    assert!(gateway.metrics().contains("mistralrs_upstream_restarts_total{upstream=\"u\"} 1"));
    assert!(gateway.metrics().contains("mistralrs_tool_active_connections 1"));
    gateway.shutdown().await;
}

#[tokio::test]
async fn answers_find_their_calls_in_any_order() {
    let gateway = Setup::new().with(child("u", &[])).start().await;
    let calls = (0..32).map(|n| {
        let gateway = &gateway;
        async move {
            let text = format!("call {n}");
            assert_eq!(gateway.call_text("u::swap", json!({"text": text, "of": 32})).await, text);
        }
    });
    futures::future::join_all(calls).await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn what_the_policy_refuses_is_neither_listed_nor_called() {
    let security = SecurityConfig {
        allowed_tools: Some(vec!["u::*".into()]),
        blocked_tools: vec!["u::echo".into(), "mistralrs::tell".into()],
        ..SecurityConfig::default()
    };
    let gateway = Setup::new().with(child("u", &[])).with(child("v", &[])).security(&security).start().await;
    let names = gateway.names();
    assert!(names.contains(&"u::pid".to_owned()) && names.contains(&"generate".to_owned()), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("echo") || name == "tell" || name.starts_with("v::")));
    for name in ["u::echo", "u__echo", "v::pid", "v__pid", "tell", "mistralrs__tell"] {
        let error = gateway.call(name, json!({})).await.unwrap_err();
        assert_eq!(error.kind(), "denied", "{name}: {error}");
        assert_eq!(answer::<CallToolResult>(Err(error)).unwrap_err().code.0, -32602);
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_call_that_is_cancelled_is_cancelled_upstream() {
    let gateway = Setup::new().with(child("u", &[])).start().await;
    let context = support::context();
    let cancellation = context.cancellation.clone();
    let call = gateway.call_with("u::sleep", json!({"seconds": 600}), context);
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cancellation.cancel();
    };
    let (outcome, ()) = tokio::join!(call, cancel);
    assert_eq!(outcome.unwrap_err().kind(), "cancelled");
    gateway.wait_until_cancelled_upstream("u").await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_call_ends_at_its_upstreams_timeout_and_the_connection_stays() {
    let mut slow = child("u", &[]);
    slow.tool_timeout = Duration::from_millis(200);
    let gateway = Setup::new().with(slow).start().await;
    let error = gateway.call("u::sleep", json!({"seconds": 600})).await.unwrap_err();
    assert_eq!(error.to_string(), "`u::sleep` did not answer within 200ms");
    // A model reads this, and can do something else.
    assert_eq!(answer::<CallToolResult>(Err(error)).unwrap().is_error, Some(true));
    gateway.wait_until_cancelled_upstream("u").await;
    assert!(!gateway.metrics().contains("mistralrs_upstream_restarts_total{upstream=\"u\"} 1"));
    gateway.shutdown().await;
}

#[tokio::test]
async fn calls_beyond_the_upstreams_limit_wait_until_their_deadline() {
    let mut narrow = child("u", &[]);
    narrow.max_concurrent_calls = 1;
    let gateway = Setup::new().with(narrow).start().await;
    let context = support::context();
    let cancellation = context.cancellation.clone();
    let long = gateway.call_with("u::sleep", json!({"seconds": 600}), context);
    let waiting = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut context = support::context();
        context.deadline = Instant::now() + Duration::from_millis(100);
        let error = gateway.call_with("u::pid", json!({}), context).await.unwrap_err();
        assert_eq!(error.to_string(), "upstream `u` already has 1 calls running");
        cancellation.cancel();
    };
    let (outcome, ()) = tokio::join!(long, waiting);
    outcome.unwrap_err();
    gateway.call("u::pid", json!({})).await.unwrap();
    gateway.shutdown().await;
}

#[tokio::test]
async fn only_a_tool_that_changes_nothing_runs_twice() {
    let gateway = Setup::new().with(child("u", &[])).start().await;
    let error = gateway.call("u::die_before_answer", json!({})).await.unwrap_err();
    assert_eq!(error.kind(), "connection_lost");
    let marker = tempfile::tempdir().unwrap();
    let marker = marker.path().join("ran");
    assert_eq!(gateway.call_text("u::read_then_die", json!({"marker": marker})).await, "second run");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_failing_tool_is_a_result_and_a_refusal_passes_unchanged() {
    let gateway = Setup::new().with(child("u", &[])).start().await;
    let failed = answer(gateway.call("u::fail", json!({})).await).unwrap();
    assert_eq!((failed.is_error, text_of(&failed)), (Some(true), "it did not work".to_owned()));
    let refused = answer(gateway.call("u::refuse", json!({})).await).unwrap_err();
    assert_eq!((refused.code.0, &*refused.message, refused.data), (-32042, "not today", Some(json!({"k": 1}))));
    let metrics = gateway.metrics();
    for line in [
        "mistralrs_tool_calls_total{tool=\"u::fail\"} 1",
        "mistralrs_tool_forwarded_calls_total{tool=\"u::refuse\"} 1",
        "mistralrs_tool_errors_total{error=\"reported\",tool=\"u::fail\"} 1",
        "mistralrs_tool_errors_total{error=\"refused\",tool=\"u::refuse\"} 1",
        "mistralrs_tool_forwarded_duration_seconds_count{tool=\"u::fail\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn schemas_arrive_as_they_were_sent_and_the_order_is_stable() {
    let gateway = Setup::new().with(child("b", &[])).with(child("a", &[])).start().await;
    let names = gateway.names();
    let mut sorted: Vec<_> = names[2..].to_vec();
    sorted.sort_by_key(|name| (name.starts_with("a::"), name.clone()));
    assert_eq!(names[..2], ["generate", "tell"]);
    assert_eq!(names[2..], sorted);
    assert!(names.contains(&"b::odd".to_owned()) && !names.contains(&"b::broken".to_owned()));
    let odd = gateway.tool("b::odd");
    assert_eq!(serde_json::to_string(&*odd.input_schema).unwrap(), support::odd_schema());
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_flood_on_stderr_blocks_nothing() {
    let gateway = Setup::new().with(child("u", &["--flood"])).start().await;
    for n in 0..5 {
        assert_eq!(gateway.call_text("u::echo", json!({"n": n})).await, format!("{{\"n\": {n}}}"));
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_child_that_reads_nothing_is_given_up() {
    let mut deaf = child("u", &["--deaf"]);
    deaf.tool_timeout = Duration::from_millis(50);
    let gateway = Setup::new().with(deaf).start().await;
    let filler = "x".repeat(4096);
    let restarted = || gateway.metrics().contains("restarts_total{upstream=\"u\"} 1");
    for _ in 0..100 {
        let calls = (0..64).map(|_| gateway.call("u::echo", json!({ "filler": filler })));
        futures::future::join_all(calls).await;
        if restarted() {
            break;
        }
    }
    eventually("it is started again", restarted).await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn children_have_ended_after_shutdown_whatever_they_do() {
    let gateway = Setup::new().with(child("nice", &[])).with(child("stubborn", &["--stubborn"])).start().await;
    let pids = [gateway.call_text("nice::pid", json!({})).await, gateway.call_text("stubborn::pid", json!({})).await];
    gateway.shutdown().await;
    for pid in pids {
        assert!(!support::is_running(&pid), "{pid}");
    }
    assert_eq!(gateway.call("nice::pid", json!({})).await.unwrap_err().kind(), "shutting_down");
}

#[tokio::test]
async fn a_changed_tool_list_reaches_the_catalog_and_every_session() {
    let gateway = Setup::new().with(child("u", &["--changing"])).start().await;
    let mut downstream = Downstream::connect(&gateway).await;
    assert!(!gateway.names().contains(&"u::extra_3".to_owned()));
    gateway.call("u::notify", json!({})).await.unwrap();
    downstream.expect(|message| message["method"] == "notifications/tools/list_changed").await;
    assert!(gateway.names().contains(&"u::extra_3".to_owned()), "{:?}", gateway.names());
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_downstream_speaks_the_protocol_over_the_gateway() {
    let gateway = Setup::new().with(child("u", &[])).start().await;
    let mut downstream = Downstream::connect(&gateway).await;
    assert_eq!(downstream.server["serverInfo"]["name"], "mistralrs-server");
    assert_eq!(downstream.server["capabilities"]["tools"]["listChanged"], true);
    let list = downstream.request("tools/list", json!({})).await;
    assert!(list["result"]["nextCursor"].is_null());
    assert_eq!(list["result"]["tools"][0]["name"], "generate");
    assert_eq!(downstream.request("ping", json!({})).await["result"], json!({}));
    for (params, code) in [
        (json!({"name": "nobody::knows", "arguments": {}}), -32602),
        (json!({"name": "generate", "arguments": {"prompt": 1}}), -32602),
        (json!({"name": "u::refuse"}), -32042),
    ] {
        assert_eq!(downstream.request("tools/call", params.clone()).await["error"]["code"], code, "{params}");
    }
    assert_eq!(downstream.request("tools/list", json!({"cursor": "x"})).await["error"]["code"], -32602);
    assert_eq!(downstream.request("no/such", json!({})).await["error"]["code"], -32601);
    for name in ["generate", "mistralrs::generate", "mistralrs__generate"] {
        let answer = downstream.request("tools/call", json!({"name": name, "arguments": {"prompt": "hi"}})).await;
        assert_eq!(answer["result"]["content"][0]["text"], "hi there", "{answer}");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn progress_arrives_in_order_with_the_callers_token_and_before_the_answer() {
    let gateway = Setup::new().with(child("u", &[])).start().await;
    let mut downstream = Downstream::connect(&gateway).await;
    for (name, arguments, steps) in
        [("u::progress", json!({"steps": 100}), 100), ("generate", json!({"prompt": "hi"}), 2)]
    {
        let params = json!({"name": name, "arguments": arguments, "_meta": {"progressToken": "mine"}});
        let (reports, answer) = downstream.request_with_reports("tools/call", params).await;
        assert!(answer["result"]["content"].is_array(), "{answer}");
        let numbers: Vec<f64> = reports.iter().map(|report| report["params"]["progress"].as_f64().unwrap()).collect();
        assert_eq!(numbers, (1..=steps).map(f64::from).collect::<Vec<_>>(), "{name}");
        assert!(reports.iter().all(|report| report["params"]["progressToken"] == "mine"));
        if name == "u::progress" {
            assert_eq!(
                reports[6]["params"],
                json!({"progressToken": "mine", "progress": 7.0, "total": 100.0, "message": "step 7"})
            );
        }
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_downstream_cancels_by_notification() {
    let gateway = Setup::new().with(child("u", &[])).start().await;
    let mut downstream = Downstream::connect(&gateway).await;
    let id = downstream.send("tools/call", json!({"name": "u::sleep", "arguments": {"seconds": 600}})).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    downstream.notify("notifications/cancelled", json!({"requestId": id})).await;
    gateway.wait_until_cancelled_upstream("u").await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn the_newest_revision_needs_no_handshake() {
    let gateway = Setup::new().start().await;
    let mut downstream = Downstream::open(&gateway);
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "0"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let discovered = downstream.request("server/discover", json!({"_meta": meta})).await;
    assert!(
        discovered["result"]["supportedVersions"].as_array().unwrap().contains(&json!("2026-07-28")),
        "{discovered}"
    );
    let list = downstream.request("tools/list", json!({"_meta": meta})).await;
    assert_eq!(list["result"]["tools"][0]["name"], "generate", "{list}");
    assert_eq!(list["result"]["resultType"], "complete", "{list}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_http_upstream_gets_its_headers_and_its_calls() {
    let upstream = HttpUpstream::start("Bearer s3cret").await;
    let mut config = support::url("web", &upstream.url());
    support::set_bearer(&mut config, "s3cret");
    let gateway = Setup::new().with(config).start().await;
    assert_eq!(gateway.call_text("web::hello", json!({"name": "ada"})).await, "hello ada");
    let wrong = Setup::new().with(support::url("web", &upstream.url())).start().await;
    assert!(!wrong.names().contains(&"web::hello".to_owned()));
    wrong.shutdown().await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_session_that_the_server_forgot_is_opened_again_and_the_call_made() {
    let upstream = HttpUpstream::start("").await;
    let gateway = Setup::new().with(support::url("web", &upstream.url())).start().await;
    for status in [404, 400] {
        upstream.forget_sessions(status);
        assert_eq!(gateway.call_text("web::hello", json!({"name": "ada"})).await, "hello ada", "{status}");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_http_upstream_that_went_away_is_used_again_when_it_is_back() {
    let upstream = HttpUpstream::start("").await;
    let address = upstream.address();
    let gateway = Setup::new().with(support::url("web", &upstream.url())).start().await;
    upstream.stop().await;
    let error = gateway.call("web::hello", json!({"name": "ada"})).await.unwrap_err();
    assert!(["unavailable", "connection_lost"].contains(&error.kind()), "{error}");
    let listed = gateway.names();
    assert!(listed.contains(&"web::hello".to_owned()), "an upstream that is down keeps its last list: {listed:?}");
    let error = gateway.call("web::hello", json!({"name": "ada"})).await.unwrap_err();
    assert_eq!(error.kind(), "unavailable", "{error}");
    let _upstream = HttpUpstream::start_at(address, "").await;
    assert_eq!(gateway.call_text("web::hello", json!({"name": "ada"})).await, "hello ada");
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_upstream_that_speaks_only_the_newest_revision_is_understood() {
    let upstream = HttpUpstream::start_modern_only().await;
    let gateway = Setup::new().with(support::url("web", &upstream.url())).start().await;
    assert_eq!(gateway.call_text("web::hello", json!({"name": "ada"})).await, "hello ada");
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_era_that_is_configured_is_not_looked_for() {
    use mistralrs_mcp::config::ProtocolEra::{Auto, Legacy, Modern};
    let (both, modern) = (HttpUpstream::start("").await, HttpUpstream::start_modern_only().await);
    for (upstream, protocol, expected) in [
        (&both, Legacy, true),
        (&both, Modern, true),
        (&modern, Auto, true),
        (&modern, Modern, true),
        (&modern, Legacy, false),
    ] {
        let mut config = support::url("web", &upstream.url());
        config.protocol = protocol;
        let gateway = Setup::new().with(config).start().await;
        assert_eq!(gateway.names().contains(&"web::hello".to_owned()), expected, "{protocol:?}");
        if expected {
            assert_eq!(gateway.call_text("web::hello", json!({"name": "ada"})).await, "hello ada");
        }
        gateway.shutdown().await;
    }
    // What is asked first shows which one it was.
    assert_eq!(both.beginnings(), ["initialize", "server/discover"]);
    assert_eq!(modern.beginnings(), ["initialize", "server/discover", "server/discover", "initialize"]);
}

#[tokio::test]
async fn an_aliased_tool_is_listed_and_called_by_its_alias() {
    let forwarding = json!({"namespace_strategy": "custom", "aliases": {"u::echo": "say"}});
    let forwarding = ToolForwardingConfig::from_value(forwarding).unwrap();
    let servers = McpClientConfig::from_value(json!({"servers": [{"name": "u", "command": "x"}]})).unwrap();
    let naming = GatewayConfig::from_sections(Some(servers), Some(forwarding)).unwrap().naming;
    let security = SecurityConfig { blocked_tools: vec!["u::pid".into()], ..SecurityConfig::default() };
    let gateway = Setup::new().with(child("u", &[])).naming(naming).security(&security).start().await;
    let mut downstream = Downstream::connect(&gateway).await;
    let list = downstream.request("tools/list", json!({})).await;
    let names: Vec<_> = list["result"]["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect();
    assert!(names.contains(&&json!("say")) && names.contains(&&json!("u::fail")), "{names:?}");
    assert!(!names.contains(&&json!("u::echo")) && !names.contains(&&json!("u::pid")), "{names:?}");
    for name in ["say", "u::echo", "u__echo", "echo"] {
        let answer = downstream.request("tools/call", json!({"name": name, "arguments": {"n": 1}})).await;
        assert_eq!(answer["result"]["content"][0]["text"], r#"{"n": 1}"#, "{name}: {answer}");
    }
    assert!(gateway.metrics().contains("mistralrs_tool_calls_total{tool=\"u::echo\"} 4"), "one tool, one label");
    gateway.shutdown().await;
}

#[tokio::test]
async fn arguments_default_to_an_empty_object() {
    let gateway = Setup::new().with(child("u", &[])).start().await;
    let mut downstream = Downstream::connect(&gateway).await;
    let answer = downstream.request("tools/call", json!({"name": "u::echo"})).await;
    assert_eq!(answer["result"]["content"][0]["text"], "{}");
    gateway.shutdown().await;
}
