//! A client that nobody wrote for these tests, over a real socket.

use std::net::SocketAddr;

use mistralrs_mcp::rmcp::model::CallToolRequestParams;
use mistralrs_mcp::rmcp::service::RunningService;
use mistralrs_mcp::rmcp::transport::StreamableHttpClientTransport;
use mistralrs_mcp::rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use mistralrs_mcp::rmcp::{RoleClient, ServiceExt};
use serde_json::json;
use tokio::net::TcpListener;

use super::{TestServer, config};
use crate::config::HttpMcpConfig;

async fn serve() -> (SocketAddr, TestServer) {
    let server = TestServer::start(HttpMcpConfig { api_keys: vec!["sk-abc123".to_owned()], ..config() }).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let service = server.router.clone().into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    (addr, server)
}

async fn connect(addr: SocketAddr, key: &str) -> Option<RunningService<RoleClient, ()>> {
    let config = StreamableHttpClientTransportConfig::with_uri(format!("http://{addr}/mcp/stream")).auth_header(key);
    ().serve(StreamableHttpClientTransport::from_config(config)).await.ok()
}

#[tokio::test]
async fn the_sdks_client_shakes_hands_lists_and_calls() {
    let (addr, _server) = serve().await;
    let client = connect(addr, "sk-abc123").await.unwrap();
    let tools = client.list_all_tools().await.unwrap();
    let names = tools.iter().map(|tool| tool.name.as_ref()).collect::<Vec<_>>();
    assert_eq!(names, ["generate", "wait", "fail", "panic"]);

    let arguments = json!({"prompt": "hello there"}).as_object().cloned().unwrap();
    let call = CallToolRequestParams::new("mistralrs::generate").with_arguments(arguments);
    let result = client.call_tool(call).await.unwrap();
    assert_eq!(result.structured_content.unwrap()["text"], "hello there");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn the_sdks_client_with_a_wrong_key_does_not_connect() {
    let (addr, _server) = serve().await;
    assert!(connect(addr, "sk-wrong").await.is_none());
}
