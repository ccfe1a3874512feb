//! The document against the router it describes.

use std::collections::BTreeSet;

use axum::Router;
use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::app::{self, App};
use crate::config::{Configuration, Environment, ServerSettings, Sources};
use crate::metrics::new_registry;
use crate::openapi::page::DOCUMENT_PATH;

const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

fn settings(api_keys: &[&str]) -> ServerSettings {
    let sources = Sources { flags: json!({}), ..Sources::default() };
    let configuration = Configuration::load(sources, Environment::default()).unwrap();
    let api_keys = api_keys.iter().map(ToString::to_string).collect();
    ServerSettings { api_keys, ..configuration.settings().unwrap().server }
}

fn router(settings: &ServerSettings) -> Router {
    app::router(&App::new(settings, new_registry()), settings)
}

async fn get(router: &Router, path: &str) -> (StatusCode, String, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let (status, media_type) = (response.status(), response.headers()["content-type"].to_str().unwrap().to_owned());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, media_type, String::from_utf8_lossy(&body).into_owned())
}

async fn document(settings: &ServerSettings) -> Value {
    let (status, media_type, body) = get(&router(settings), DOCUMENT_PATH).await;
    assert_eq!((status, media_type.as_str()), (StatusCode::OK, "application/json"));
    serde_json::from_str(&body).unwrap()
}

/// Every operation: method, path, what it says.
fn operations(document: &Value) -> Vec<(Method, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    paths
        .flat_map(|(path, operations)| operations.as_object().unwrap().iter().map(move |operation| (path, operation)))
        .map(|(path, (method, operation))| (method.to_ascii_uppercase().parse().unwrap(), path.as_str(), operation))
        .collect()
}

#[tokio::test]
async fn exactly_the_documented_methods_of_the_documented_paths_are_served() {
    let settings = settings(&[]);
    let router = router(&settings);
    let document = document(&settings).await;
    let documented: BTreeSet<(String, &str)> =
        operations(&document).into_iter().map(|(method, path, _)| (method.to_string(), path)).collect();
    let paths: BTreeSet<&str> = documented.iter().map(|(_, path)| *path).collect();
    assert!(paths.len() > 15, "{paths:?}");
    for path in paths {
        for method in METHODS {
            let uri = path.replace("{id}", "x");
            let request = Request::builder().method(&method).uri(uri).body(Body::empty()).unwrap();
            let status = router.clone().oneshot(request).await.unwrap().status();
            let is_served = status != StatusCode::METHOD_NOT_ALLOWED;
            let is_documented = documented.contains(&(method.to_string(), path));
            assert_eq!(is_served, is_documented, "{method} {path} answers {status}");
        }
    }
}

#[tokio::test]
async fn every_route_of_the_table_is_in_the_document() {
    let document = document(&settings(&[])).await;
    for path in ["/v1/chat/completions", "/v1/messages", "/v1/models/{id}", "/metrics", "/docs", DOCUMENT_PATH] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    // By construction: a route is added with its operation or not at all. So the table and the document have one length.
    assert_eq!(
        operations(&document).len(),
        app::num_routes() + 1,
        "one more is the metrics page, whose path is configured"
    );
}

#[tokio::test]
async fn references_lead_somewhere_and_ids_are_unique() {
    let document = document(&settings(&[])).await;
    let mut open = vec![&document];
    let mut num_references = 0;
    while let Some(value) = open.pop() {
        if let Some(reference) = value["$ref"].as_str() {
            let pointer = reference.strip_prefix('#').expect("a reference into this document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
            num_references += 1;
        }
        match value {
            Value::Object(entries) => open.extend(entries.values()),
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    assert!(num_references > 50, "{num_references}");
    let operations = operations(&document);
    let ids: BTreeSet<&str> =
        operations.iter().map(|(_, _, operation)| operation["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), operations.len());
}

#[tokio::test]
async fn limits_of_fields_stand_in_the_document_as_the_server_holds_to_them() {
    let document = document(&settings(&[])).await;
    let field = |body: &str, name: &str| {
        let mut schema = document["components"]["schemas"][body]["properties"][name].clone();
        schema.as_object_mut().unwrap().remove("description");
        schema.to_string()
    };
    insta::assert_snapshot!(
        [
            field("CreateChatCompletionRequest", "n"),
            field("CreateChatCompletionRequest", "top_p"),
            field("CreateChatCompletionRequest", "stop_token_ids"),
            field("CreateCompletionRequest", "logprobs"),
            field("CreateResponseRequest", "truncation"),
            field("CreateMessageRequest", "max_tokens"),
        ]
        .join("\n"),
        @r#"
    {"maximum":64,"type":["integer","null"],"format":"uint","minimum":1}
    {"exclusiveMinimum":0,"type":["number","null"],"format":"float","maximum":1.0}
    {"maxItems":256,"type":["array","null"],"items":{"type":"integer","format":"uint32","minimum":0}}
    {"maximum":20,"type":["integer","null"],"format":"uint","minimum":0}
    {"enum":["disabled",null],"type":["string","null"]}
    {"minimum":1,"type":"integer","format":"uint"}
    "#
    );
    // What an endpoint refuses under this name is not among its fields.
    assert!(document["components"]["schemas"]["CreateResponseRequest"]["properties"]["max_tokens"].is_null());
    assert_eq!(
        document["components"]["schemas"]["CreateMessageRequest"]["required"].to_string(),
        r#"["max_tokens","messages"]"#
    );
}

#[tokio::test]
async fn keys_are_asked_for_where_there_are_keys_and_never_for_the_document() {
    let security = |document: &Value, path: &str, method: &str| document["paths"][path][method]["security"].to_string();
    let keyed = document(&settings(&["sk-one"])).await;
    assert_eq!(security(&keyed, "/tokenize", "post"), r#"[{"bearer":[]},{"apiKey":[]}]"#);
    assert_eq!(security(&keyed, DOCUMENT_PATH, "get"), "[]");
    let open = document(&settings(&[])).await;
    assert_eq!(security(&open, "/tokenize", "post"), r#"[{},{"bearer":[]},{"apiKey":[]}]"#);
}

#[tokio::test]
async fn the_page_takes_nothing_from_elsewhere() {
    let (status, media_type, page) = get(&router(&settings(&["sk-one"])), "/docs").await;
    assert_eq!((status, media_type.as_str()), (StatusCode::OK, "text/html; charset=utf-8"));
    for elsewhere in ["http:", "https:", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
    assert!(page.contains(DOCUMENT_PATH), "it does not read the document");
}
