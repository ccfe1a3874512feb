//! What goes through the gateway beside tools and their results: resources, prompts, completions, questions, log messages,
//! subscriptions, and to whom. The upstream is the conformance suite's fixture.

use mistralrs_mcp::config::SecurityConfig;
use serde_json::{Value, json};

use super::support::downstream::Downstream;
use super::support::{Setup, TestGateway, everything};

const WATCHED: &str = "mcp://docs/test://watched-resource";

async fn gateway(era: &str) -> TestGateway {
    Setup::new().with(everything("docs", era)).start().await
}

pub fn listed<'a>(answer: &'a Value, list: &str, key: &str) -> Vec<&'a str> {
    answer["result"][list].as_array().unwrap().iter().map(|entry| entry[key].as_str().unwrap()).collect()
}

pub fn meta(capabilities: &Value) -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "0"},
        "io.modelcontextprotocol/clientCapabilities": capabilities,
    })
}

pub fn is_request(message: &Value) -> bool {
    message["method"].is_string() && !message["id"].is_null()
}

#[tokio::test]
async fn resources_are_listed_under_uris_that_map_back() {
    let gateway = Setup::new().with(everything("docs", "legacy")).with(everything("more", "legacy")).start().await;
    let mut client = Downstream::connect(&gateway).await;
    let uris = client.request("resources/list", json!({})).await;
    let uris = listed(&uris, "resources", "uri");
    assert_eq!(uris.len(), 6);
    assert!(uris.contains(&"mcp://docs/test://static-text") && uris.contains(&"mcp://more/test://static-text"));
    let templates = client.request("resources/templates/list", json!({})).await;
    assert_eq!(
        listed(&templates, "resourceTemplates", "uriTemplate"),
        ["mcp://docs/test://template/{id}/data", "mcp://more/test://template/{id}/data"]
    );
    // The upstream's own URI, as a tool's result has it, is found too.
    for (uri, own) in [
        ("mcp://more/test://static-text", "test://static-text"),
        ("mcp://docs/test://template/7/data", "test://template/7/data"),
        ("test://template/7/data", "test://template/7/data"),
    ] {
        let read = client.request("resources/read", json!({"uri": uri})).await;
        assert_eq!(read["result"]["contents"][0]["uri"], own, "{read}");
    }
    for uri in ["mcp://docs/test://nowhere", "mcp://nobody/test://static-text", "file:///etc/passwd"] {
        let refused = client.request("resources/read", json!({"uri": uri})).await;
        assert_eq!(refused["error"]["code"], -32002, "{refused}");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn prompts_answer_to_every_spelling_of_their_name() {
    let gateway = gateway("legacy").await;
    let mut client = Downstream::connect(&gateway).await;
    let prompts = client.request("prompts/list", json!({})).await;
    assert_eq!(listed(&prompts, "prompts", "name")[0], "docs::test_simple_prompt");
    for name in ["docs::test_simple_prompt", "docs__test_simple_prompt", "test_simple_prompt"] {
        let got = client.request("prompts/get", json!({"name": name})).await;
        assert_eq!(got["result"]["messages"][0]["content"]["text"], "This is a simple prompt for testing.", "{got}");
    }
    let refused = client.request("prompts/get", json!({"name": "docs::none"})).await;
    assert_eq!(refused["error"]["code"], -32602, "{refused}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn completions_come_from_whose_prompt_or_resource_it_is() {
    let gateway = gateway("legacy").await;
    let mut client = Downstream::connect(&gateway).await;
    for reference in [
        json!({"type": "ref/prompt", "name": "docs::test_prompt_with_arguments"}),
        json!({"type": "ref/resource", "uri": "mcp://docs/test://template/{id}/data"}),
    ] {
        let params = json!({"ref": reference, "argument": {"name": "arg1", "value": "be"}});
        let completed = client.request("completion/complete", params).await;
        assert_eq!(completed["result"]["completion"]["values"], json!(["be-completed"]), "{completed}");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn what_the_policy_hides_is_neither_listed_nor_read() {
    let security = SecurityConfig { allowed_namespaces: Some(vec!["more".into()]), ..SecurityConfig::default() };
    let setup = Setup::new().with(everything("docs", "legacy")).with(everything("more", "legacy"));
    let gateway = setup.security(&security).start().await;
    let mut client = Downstream::connect(&gateway).await;
    let uris = client.request("resources/list", json!({})).await;
    assert!(listed(&uris, "resources", "uri").iter().all(|uri| uri.starts_with("mcp://more/")), "{uris}");
    let read = client.request("resources/read", json!({"uri": "mcp://docs/test://static-text"})).await;
    assert_eq!(read["error"]["code"], -32002, "{read}");
    let got = client.request("prompts/get", json!({"name": "docs::test_simple_prompt"})).await;
    assert_eq!(got["error"]["code"], -32602, "{got}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_question_goes_to_the_client_whose_call_it_belongs_to() {
    let gateway = gateway("legacy").await;
    let mut other = Downstream::connect_able(&gateway, json!({"sampling": {}})).await;
    let mut client = Downstream::connect_able(&gateway, json!({"sampling": {}})).await;
    let call = client.send("tools/call", json!({"name": "docs::test_sampling", "arguments": {"prompt": "why?"}})).await;
    let question = client.expect(is_request).await;
    assert_eq!(question["method"], "sampling/createMessage");
    assert_eq!(question["params"]["messages"][0]["content"]["text"], "why?");
    let said = json!({"role": "assistant", "content": {"type": "text", "text": "because"}, "model": "m"});
    client.answer(&question, said).await;
    let answer = client.expect(|message| message["id"] == call && message["result"].is_object()).await;
    assert_eq!(answer["result"]["content"][0]["text"], "LLM response: because");
    // The other one has heard nothing: the first thing that comes is the answer to what it asks now.
    let (before, _) = other.request_with_reports("ping", json!({})).await;
    assert!(before.is_empty(), "{before:?}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_question_that_could_be_of_two_clients_goes_to_neither() {
    let gateway = gateway("legacy").await;
    let able = json!({"sampling": {}, "elicitation": {}});
    let mut first = Downstream::connect_able(&gateway, able.clone()).await;
    let mut second = Downstream::connect_able(&gateway, able).await;
    let call = json!({"name": "docs::test_sampling", "arguments": {"prompt": "why?"}});
    let pending = first.send("tools/call", call).await;
    let question = first.expect(is_request).await;
    let arguments = json!({"name": "docs::test_elicitation", "arguments": {"message": "who?"}});
    let (before, refused) = second.request_with_reports("tools/call", arguments).await;
    assert!(before.is_empty() && refused["error"]["message"].is_string(), "{before:?} {refused}");
    let said = json!({"role": "assistant", "content": {"type": "text", "text": "because"}, "model": "m"});
    first.answer(&question, said).await;
    let answer = first.expect(|message| message["id"] == pending && message["result"].is_object()).await;
    assert_eq!(answer["result"]["content"][0]["text"], "LLM response: because");
    gateway.shutdown().await;
}

#[tokio::test]
async fn who_cannot_answer_is_not_asked() {
    let gateway = gateway("legacy").await;
    let mut client = Downstream::connect(&gateway).await;
    let arguments = json!({"name": "docs::test_elicitation", "arguments": {"message": "who?"}});
    let (before, refused) = client.request_with_reports("tools/call", arguments).await;
    assert!(before.is_empty() && refused["error"]["message"].as_str().unwrap().contains("cannot answer"), "{refused}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn log_messages_reach_the_caller_alone_from_the_level_it_asked_for() {
    let gateway = gateway("legacy").await;
    let mut other = Downstream::connect(&gateway).await;
    let mut client = Downstream::connect(&gateway).await;
    for (level, expected) in [("info", 3), ("error", 0)] {
        client.request("logging/setLevel", json!({"level": level})).await;
        let call = json!({"name": "docs::test_tool_with_logging"});
        let (before, _) = client.request_with_reports("tools/call", call).await;
        let logged: Vec<_> = before.iter().filter(|message| message["method"] == "notifications/message").collect();
        assert_eq!(logged.len(), expected, "{before:?}");
        assert!(logged.iter().all(|message| message["params"]["logger"] == "fixture"));
    }
    let (before, _) = other.request_with_reports("ping", json!({})).await;
    assert!(before.is_empty(), "{before:?}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_update_reaches_its_subscribers_under_the_uri_they_know() {
    for era in ["legacy", "modern"] {
        let gateway = gateway(era).await;
        let mut other = Downstream::connect(&gateway).await;
        let mut client = Downstream::connect(&gateway).await;
        client.request("resources/subscribe", json!({"uri": WATCHED})).await;
        let touch = json!({"name": "docs::test_trigger_resource_update"});
        let update = async {
            loop {
                // A modern upstream hears of the wish by a stream that is opened meanwhile.
                let (before, _) = client.request_with_reports("tools/call", touch.clone()).await;
                let update = before.into_iter().find(|seen| seen["method"] == "notifications/resources/updated");
                if let Some(update) = update {
                    return update;
                }
            }
        };
        let update = tokio::time::timeout(std::time::Duration::from_secs(30), update).await.unwrap();
        assert_eq!(update["params"]["uri"], WATCHED, "{era}");
        let (before, _) = other.request_with_reports("ping", json!({})).await;
        assert!(before.is_empty(), "{before:?}");
        client.request("resources/unsubscribe", json!({"uri": WATCHED})).await;
        client.request("ping", json!({})).await;
        let (before, _) = client.request_with_reports("tools/call", touch).await;
        assert!(!before.iter().any(|seen| seen["method"] == "notifications/resources/updated"), "{before:?}");
        gateway.shutdown().await;
    }
}

#[tokio::test]
async fn a_changed_list_of_prompts_reaches_every_session() {
    for era in ["legacy", "modern"] {
        let gateway = gateway(era).await;
        let mut client = Downstream::connect(&gateway).await;
        client.send("tools/call", json!({"name": "docs::test_trigger_prompt_change"})).await;
        client.expect(|message| message["method"] == "notifications/prompts/list_changed").await;
        let prompts = client.request("prompts/list", json!({})).await;
        assert!(listed(&prompts, "prompts", "name").contains(&"docs::extra"), "{era}: {prompts}");
        gateway.shutdown().await;
    }
}

#[tokio::test]
async fn a_newer_upstreams_needs_are_passed_to_a_newer_client_as_they_are() {
    let gateway = gateway("modern").await;
    let mut client = Downstream::open(&gateway);
    let mut params = json!({
        "name": "docs::test_input_required_result_request_state", "arguments": {}, "_meta": meta(&json!({"elicitation": {}})),
    });
    let needed = client.request("tools/call", params.clone()).await;
    assert_eq!(needed["result"]["resultType"], "input_required", "{needed}");
    assert_eq!(needed["result"]["inputRequests"]["confirm"]["method"], "elicitation/create");
    params["inputResponses"] = json!({"confirm": {"action": "accept", "content": {"ok": true}}});
    params["requestState"] = needed["result"]["requestState"].clone();
    let done = client.request("tools/call", params.clone()).await;
    assert_eq!(done["result"]["content"][0]["text"], "state-ok", "{done}");
    params["requestState"] = json!("forged");
    let refused = client.request("tools/call", params).await;
    assert_eq!(refused["error"]["code"], -32602, "{refused}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_newer_upstreams_needs_are_asked_of_an_older_client() {
    let gateway = gateway("modern").await;
    let mut client = Downstream::connect_able(&gateway, json!({"elicitation": {}})).await;
    let call = client.send("tools/call", json!({"name": "docs::test_input_required_result_multi_round"})).await;
    for content in [json!({"name": "Ada"}), json!({"color": "green"})] {
        let question = client.expect(is_request).await;
        assert_eq!(question["method"], "elicitation/create");
        client.answer(&question, json!({"action": "accept", "content": content})).await;
    }
    let answer = client.expect(|message| message["id"] == call && message["result"].is_object()).await;
    assert_eq!(answer["result"]["content"][0]["text"], "Ada likes green", "{answer}");
    gateway.shutdown().await;
}

/// A call of 2026-07-28 by a client that has `capabilities`.
fn modern_call(tool: &str, arguments: &Value, capabilities: &Value) -> Value {
    json!({"name": format!("docs::{tool}"), "arguments": arguments, "_meta": meta(capabilities)})
}

/// The key of the one question in `needed`, and `params` with its state and `answer`.
fn with_answer(params: &Value, needed: &Value, answer: &Value) -> Value {
    assert_eq!(needed["result"]["resultType"], "input_required", "{needed}");
    let questions = needed["result"]["inputRequests"].as_object().unwrap();
    let key = questions.keys().next().unwrap();
    let mut params = params.clone();
    params["requestState"] = needed["result"]["requestState"].clone();
    params["inputResponses"] = json!({key: answer});
    params
}

#[tokio::test]
async fn an_older_upstreams_question_is_a_newer_clients_result_and_its_answer_continues_the_call() {
    let gateway = gateway("legacy").await;
    let mut client = Downstream::open(&gateway);
    let params = modern_call("test_sampling", &json!({"prompt": "why?"}), &json!({"sampling": {}}));
    let needed = client.request("tools/call", params.clone()).await;
    let said = json!({"role": "assistant", "content": {"type": "text", "text": "because"}, "model": "m"});
    let good = with_answer(&params, &needed, &said);
    let questions = &needed["result"]["inputRequests"];
    let question = questions.as_object().unwrap().values().next().unwrap();
    assert_eq!(question["method"], "sampling/createMessage");
    assert_eq!(question["params"]["messages"][0]["content"]["text"], "why?");

    // What cannot be read, and what is another call's, leaves it waiting; a forged state is nobody's.
    let unreadable = with_answer(&params, &needed, &json!({"role": 1}));
    let mut of_another = good.clone();
    of_another["name"] = json!("docs::test_elicitation");
    let mut forged = good.clone();
    forged["requestState"] = json!("mistralrs-held-00000000-0000-4000-8000-000000000000");
    for wrong in [unreadable, of_another, forged] {
        let refused = client.request("tools/call", wrong).await;
        assert_eq!(refused["error"]["code"], -32602, "{refused}");
    }
    // Without the answer it is asked for again, under a state of its own.
    let mut unanswered = good.clone();
    unanswered["inputResponses"] = json!({"something": {"else": 1}});
    let again = client.request("tools/call", unanswered).await;
    assert_eq!(again["result"]["inputRequests"], *questions, "{again}");
    let refused = client.request("tools/call", good).await;
    assert_eq!(refused["error"]["code"], -32602, "the first state is used up: {refused}");

    let good = with_answer(&params, &again, &said);
    let done = client.request("tools/call", good.clone()).await;
    assert_eq!(done["result"]["content"][0]["text"], "LLM response: because", "{done}");
    assert_eq!(done["result"]["resultType"], "complete", "{done}");
    let refused = client.request("tools/call", good).await;
    assert_eq!(refused["error"]["code"], -32602, "{refused}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_newer_client_that_cannot_answer_is_not_asked_by_an_older_upstream() {
    let gateway = gateway("legacy").await;
    let mut client = Downstream::open(&gateway);
    let params = modern_call("test_sampling", &json!({"prompt": "why?"}), &json!({"elicitation": {}}));
    let refused = client.request("tools/call", params).await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("cannot answer"), "{refused}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn calls_that_wait_for_one_client_are_continued_in_any_order_and_have_a_limit() {
    let gateway = gateway("legacy").await;
    let mut client = Downstream::open(&gateway);
    let call = |n: usize| modern_call("test_sampling", &json!({"prompt": format!("{n}?")}), &json!({"sampling": {}}));
    let mut waiting = Vec::new();
    for n in 0..32 {
        let needed = client.request("tools/call", call(n)).await;
        let said = json!({"role": "assistant", "content": {"type": "text", "text": n.to_string()}, "model": "m"});
        waiting.push((n, with_answer(&call(n), &needed, &said)));
    }
    let one_more = client.request("tools/call", call(32)).await;
    assert_eq!(one_more["result"]["isError"], true, "{one_more}");
    for (n, answered) in waiting.into_iter().rev() {
        let done = client.request("tools/call", answered).await;
        assert_eq!(done["result"]["content"][0]["text"], format!("LLM response: {n}"), "{done}");
    }
    // Given up with the gateway, too.
    client.request("tools/call", call(33)).await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_upstream_that_reads_capabilities_gets_those_of_the_caller() {
    let gateway = gateway("modern").await;
    let mut client = Downstream::open(&gateway);
    for (capabilities, expected) in [
        (json!({"sampling": {}}), vec!["ask_model"]),
        (json!({"elicitation": {}, "roots": {}}), vec!["ask_roots", "ask_user"]),
    ] {
        let params = json!({"name": "docs::test_input_required_result_capabilities", "_meta": meta(&capabilities)});
        let needed = client.request("tools/call", params).await;
        let asked: Vec<_> = needed["result"]["inputRequests"].as_object().unwrap().keys().collect();
        assert_eq!(asked, expected, "{needed}");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_search_can_stand_in_for_the_list_of_upstream_tools() {
    let security = SecurityConfig { blocked_tools: vec!["docs::test_audio_*".into()], ..SecurityConfig::default() };
    let gateway = Setup::new().with(everything("docs", "legacy")).security(&security).searched().start().await;
    assert_eq!(gateway.names(), ["generate", "tell", "search_tools"]);
    let mut client = Downstream::connect(&gateway).await;
    for (arguments, expected) in [
        (json!({"query": "image", "detail": "name", "limit": 1}), json!([{"name": "docs::test_image_content"}])),
        (json!({"query": "sound"}), json!([])),
        (
            json!({"query": "fails", "limit": 1}),
            json!([{"name": "docs::test_error_handling", "description": "Fails."}]),
        ),
    ] {
        let found = client.request("tools/call", json!({"name": "search_tools", "arguments": arguments})).await;
        assert_eq!(found["result"]["structuredContent"]["tools"], expected, "{found}");
    }
    let full =
        json!({"name": "mistralrs::search_tools", "arguments": {"query": "schema", "detail": "full", "limit": 1}});
    let found = client.request("tools/call", full).await;
    let schema = &found["result"]["structuredContent"]["tools"][0]["inputSchema"];
    assert_eq!(schema["$defs"]["address"]["$anchor"], "addressDef", "{found}");
    let wrong = client.request("tools/call", json!({"name": "search_tools", "arguments": {"words": "x"}})).await;
    assert_eq!(wrong["error"]["code"], -32602, "{wrong}");
    // What was found is called by its name.
    assert_eq!(
        gateway.call_text("docs::test_simple_text", json!({})).await,
        "This is a simple text response for testing."
    );
    gateway.shutdown().await;
}
