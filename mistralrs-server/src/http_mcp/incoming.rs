//! From body bytes to typed messages, once. rmcp's own parser answers "no such method" where only a parameter is
//! wrong; reading the envelope first keeps malformed JSON, wrong envelopes, unknown methods and wrong
//! params apart, and knows the id to answer to.
#![expect(deprecated, reason = "rmcp marks what 2026-07-28 removed, and every client before it asks for")]

use mistralrs_mcp::rmcp::model::{
    CallToolRequest, CancelTaskRequest, ClientJsonRpcMessage, ClientNotification, ClientRequest, CompleteRequest,
    CustomRequest, DiscoverRequest, GetPromptRequest, GetTaskRequest, InitializeRequest, JsonRpcNotification,
    ListPromptsRequest, ListResourceTemplatesRequest, ListResourcesRequest, ListToolsRequest, PingRequest,
    ReadResourceRequest, RequestId, SetLevelRequest, SubscribeRequest, SubscriptionsListenRequest, UnsubscribeRequest,
    UpdateTaskRequest,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::error::{EndpointError, Refusal};

/// Messages in one batch: enough for any client seen, few enough that one body cannot start a flood of calls.
pub(super) const MAX_BATCH: usize = 64;

/// Levels of nesting: serde_json's own limit, found before what is skipped unread could hide more.
const MAX_DEPTH: usize = 128;

/// What a POST body holds.
#[derive(Debug)]
pub(super) enum Payload {
    One(Box<ClientJsonRpcMessage>),
    /// Protocol 2025-03-26 only. Each member stands for itself: one that is wrong does not spoil the others.
    Batch(Vec<Result<ClientJsonRpcMessage, Refusal>>),
}

impl Payload {
    /// # Errors
    /// [`EndpointError::Parse`] for what is not JSON, `InvalidRequest` for what is not JSON-RPC 2.0,
    /// `InvalidParams` for a known method whose params do not fit it.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let text = std::str::from_utf8(body).map_err(|error| EndpointError::Parse(error.to_string()))?;
        if depth(text) > MAX_DEPTH {
            return Err(EndpointError::Parse(format!("nested deeper than {MAX_DEPTH} levels")).into());
        }
        if !text.trim_ascii_start().starts_with('[') {
            return Ok(Self::One(Box::new(parse_message(text)?)));
        }
        let members: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| reject_json(&error))?;
        if members.is_empty() || members.len() > MAX_BATCH {
            let message = format!("a batch has 1 to {MAX_BATCH} messages, this one has {}", members.len());
            return Err(EndpointError::InvalidRequest(message).into());
        }
        Ok(Self::Batch(members.into_iter().map(|member| parse_message(member.get())).collect()))
    }

    /// The `method` label of metrics.
    pub fn method_label(&self) -> &'static str {
        let Self::One(message) = self else { return OTHER_METHOD };
        match &**message {
            ClientJsonRpcMessage::Request(request) => method_label(request.request.method()),
            ClientJsonRpcMessage::Notification(notification) => notification_label(&notification.notification),
            ClientJsonRpcMessage::Response(_) | ClientJsonRpcMessage::Error(_) => OTHER_METHOD,
        }
    }
}

/// The envelope, each part still JSON text.
#[derive(Deserialize)]
#[serde(expecting = "an object or an array of objects")]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

fn parse_message(text: &str) -> Result<ClientJsonRpcMessage, Refusal> {
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|error| reject_json(&error))?;
    let id = envelope.id.map(parse_id).transpose()?;
    let method = envelope.method.map(|raw| serde_json::from_str::<String>(raw.get())).transpose();
    let refuse = |message: &str| Refusal { id: id.clone(), error: EndpointError::InvalidRequest(message.to_owned()) };

    if envelope.jsonrpc.map(RawValue::get) != Some(r#""2.0""#) {
        return Err(refuse(r#""jsonrpc" must be "2.0""#));
    }
    match (method, id.clone()) {
        (Err(_), _) => Err(refuse(r#""method" must be a string"#)),
        (Ok(Some(method)), Some(id)) => parse_request(&method, id, text),
        (Ok(Some(_)), None) => parse_notification(text),
        (Ok(None), Some(_)) if envelope.result.is_some() || envelope.error.is_some() => {
            serde_json::from_str(text).map_err(|error| refuse(&format!("not a JSON-RPC response: {error}")))
        }
        (Ok(None), _) => Err(refuse(r#"a message has a "method", or a "result" or "error" with an "id""#)),
    }
}

fn parse_id(raw: &RawValue) -> Result<RequestId, EndpointError> {
    serde_json::from_str(raw.get())
        .map_err(|_| EndpointError::InvalidRequest(r#""id" must be a string or an integer"#.to_owned()))
}

fn parse_notification(text: &str) -> Result<ClientJsonRpcMessage, Refusal> {
    let parsed: JsonRpcNotification<ClientNotification> =
        serde_json::from_str(text).map_err(|error| EndpointError::InvalidRequest(error.to_string()))?;
    Ok(ClientJsonRpcMessage::Notification(parsed))
}

fn parse_request(method: &str, id: RequestId, text: &str) -> Result<ClientJsonRpcMessage, Refusal> {
    let parsed = match method {
        "initialize" => typed::<InitializeRequest>(text),
        "server/discover" => typed::<DiscoverRequest>(text),
        "ping" => typed::<PingRequest>(text),
        "tools/list" => typed::<ListToolsRequest>(text),
        "tools/call" => typed::<CallToolRequest>(text),
        "resources/list" => typed::<ListResourcesRequest>(text),
        "resources/templates/list" => typed::<ListResourceTemplatesRequest>(text),
        "resources/read" => typed::<ReadResourceRequest>(text),
        "resources/subscribe" => typed::<SubscribeRequest>(text),
        "resources/unsubscribe" => typed::<UnsubscribeRequest>(text),
        "subscriptions/listen" => typed::<SubscriptionsListenRequest>(text),
        "prompts/list" => typed::<ListPromptsRequest>(text),
        "prompts/get" => typed::<GetPromptRequest>(text),
        "completion/complete" => typed::<CompleteRequest>(text),
        "logging/setLevel" => typed::<SetLevelRequest>(text),
        "tasks/get" => typed::<GetTaskRequest>(text),
        "tasks/update" => typed::<UpdateTaskRequest>(text),
        "tasks/cancel" => typed::<CancelTaskRequest>(text),
        // The gateway's handler answers these with -32601.
        _ => typed::<CustomRequest>(text),
    };
    match parsed {
        Ok(request) => Ok(ClientJsonRpcMessage::request(request, id)),
        Err(error) => {
            let error = EndpointError::InvalidParams { method: method_label(method), reason: error.to_string() };
            Err(Refusal::of(id, error))
        }
    }
}

fn typed<R: DeserializeOwned + Into<ClientRequest>>(text: &str) -> Result<ClientRequest, serde_json::Error> {
    serde_json::from_str::<R>(text).map(Into::into)
}

/// How deep arrays and objects are nested in what may be JSON.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
    }
    deepest
}

fn skip_string(bytes: &mut impl Iterator<Item = u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
}

fn reject_json(error: &serde_json::Error) -> EndpointError {
    match error.classify() {
        Category::Data => EndpointError::InvalidRequest(format!("not a JSON-RPC message: {error}")),
        Category::Io | Category::Syntax | Category::Eof => EndpointError::Parse(error.to_string()),
    }
}

/// The label of everything that is not in [`METHODS`]: callers do not choose label values.
pub(super) const OTHER_METHOD: &str = "other";

/// The methods that metrics tell apart.
const METHODS: &[&str] = &[
    "initialize",
    "server/discover",
    "ping",
    "tools/list",
    "tools/call",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
    "subscriptions/listen",
    "prompts/list",
    "prompts/get",
    "completion/complete",
    "logging/setLevel",
    "tasks/get",
    "tasks/update",
    "tasks/cancel",
];

pub(super) fn method_label(method: &str) -> &'static str {
    METHODS.iter().find(|known| **known == method).copied().unwrap_or(OTHER_METHOD)
}

fn notification_label(notification: &ClientNotification) -> &'static str {
    match notification {
        ClientNotification::InitializedNotification(_) => "notifications/initialized",
        ClientNotification::CancelledNotification(_) => "notifications/cancelled",
        ClientNotification::ProgressNotification(_) => "notifications/progress",
        _ => OTHER_METHOD,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: &str) {
        let read = match Payload::parse(body.as_bytes()) {
            Ok(Payload::One(message)) => match *message {
                ClientJsonRpcMessage::Request(request) => {
                    format!("request {} {}", request.id, request.request.method())
                }
                ClientJsonRpcMessage::Notification(_) => "notification".to_owned(),
                ClientJsonRpcMessage::Response(_) | ClientJsonRpcMessage::Error(_) => "response".to_owned(),
            },
            Ok(Payload::Batch(members)) => {
                let wrong = members.iter().filter(|member| member.is_err()).count();
                format!("batch of {}, {wrong} wrong", members.len())
            }
            Err(refusal) => {
                let id = refusal.id.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
                format!("{} for {id}", refusal.error.kind())
            }
        };
        assert_eq!(read, expected, "{body}");
    }

    #[test]
    fn requests_notifications_and_responses_are_told_apart() {
        check(r#"{"jsonrpc":"2.0","method":"tools/list","id":"1"}"#, "request 1 tools/list");
        check(r#"{"jsonrpc":"2.0","method":"ping","id":7,"params":{}}"#, "request 7 ping");
        check(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, "notification");
        check(r#"{"jsonrpc":"2.0","method":"notifications/our_own","params":{"a":1}}"#, "notification");
        check(r#"{"jsonrpc":"2.0","id":3,"result":{}}"#, "response");
        check(r#"{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":"no"}}"#, "response");
    }

    #[test]
    fn what_is_not_json_is_a_parse_error() {
        for body in ["", "{", "not json", r#"{"jsonrpc":"2.0","method":"ping","id":1"#, "[1,", "\u{0}"] {
            check(body, "parse_error for -");
        }
        assert_eq!(Payload::parse(b"\"\xff\"").unwrap_err().error.kind(), "parse_error");
        check(&"[".repeat(100_000), "parse_error for -");
    }

    #[test]
    fn nesting_deeper_than_any_stack_is_a_parse_error() {
        let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
        for params in [format!("{open}{close}"), format!(r#"{{"name":"t","arguments":{{"a":{open}{close}}}}}"#)] {
            let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
            assert_eq!(Payload::parse(body.as_bytes()).unwrap_err().error.kind(), "parse_error");
        }
        let brackets = format!(r#"{{"jsonrpc":"2.0","id":"\"{open}","method":"ping"}}"#);
        assert!(Payload::parse(brackets.as_bytes()).is_ok(), "brackets in a string nest nothing");
    }

    #[test]
    fn json_that_is_not_json_rpc_is_an_invalid_request() {
        check("5", "invalid_request for -");
        check("{}", "invalid_request for -");
        check(r#"{"method":"ping","id":1}"#, "invalid_request for 1");
        check(r#"{"jsonrpc":"1.0","method":"ping","id":1}"#, "invalid_request for 1");
        check(r#"{"jsonrpc":"2.0","method":5,"id":1}"#, "invalid_request for 1");
        check(r#"{"jsonrpc":"2.0","method":"ping","id":1.5}"#, "invalid_request for -");
        check(r#"{"jsonrpc":"2.0","method":"ping","id":{}}"#, "invalid_request for -");
        check(r#"{"jsonrpc":"2.0","id":1}"#, "invalid_request for 1");
    }

    #[test]
    fn an_unknown_method_is_a_request_and_wrong_params_of_a_known_one_are_not() {
        check(r#"{"jsonrpc":"2.0","method":"tools/frobnicate","id":1}"#, "request 1 tools/frobnicate");
        check(r#"{"jsonrpc":"2.0","method":"tools/call","id":1}"#, "invalid_params for 1");
        check(r#"{"jsonrpc":"2.0","method":"tools/call","id":1,"params":{"name":5}}"#, "invalid_params for 1");
        check(
            r#"{"jsonrpc":"2.0","method":"tools/call","id":1,"params":{"name":"t","arguments":[]}}"#,
            "invalid_params for 1",
        );
    }

    #[test]
    fn members_of_a_batch_stand_for_themselves() {
        check(r#"[{"jsonrpc":"2.0","method":"ping","id":1},{"id":2}]"#, "batch of 2, 1 wrong");
        check("[]", "invalid_request for -");
        let too_many = vec![r#"{"jsonrpc":"2.0","method":"ping","id":1}"#; MAX_BATCH + 1].join(",");
        check(&format!("[{too_many}]"), "invalid_request for -");
    }

    #[test]
    fn metric_labels_are_a_fixed_set() {
        assert_eq!(method_label("tools/call"), "tools/call");
        assert_eq!(method_label("rm -rf /"), OTHER_METHOD);
    }
}
