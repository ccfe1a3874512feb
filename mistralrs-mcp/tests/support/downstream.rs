//! A client that speaks lines of JSON, so that a test sees what is on the wire and in which order.

use std::time::Duration;

use mistralrs_mcp::rmcp::ServiceExt;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, ReadHalf, WriteHalf};

use super::TestGateway;

const PATIENCE: Duration = Duration::from_mins(1);

pub struct Downstream {
    reader: tokio::io::Lines<BufReader<ReadHalf<DuplexStream>>>,
    writer: WriteHalf<DuplexStream>,
    next_id: u64,
    /// What `initialize` was answered with.
    pub server: Value,
}

impl Downstream {
    /// Without a handshake.
    pub fn open(gateway: &TestGateway) -> Self {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let handler = gateway.gateway.handler();
        tokio::spawn(async move {
            if let Ok(service) = Box::pin(handler.serve(theirs)).await {
                let _ = service.waiting().await;
            }
        });
        let (reader, writer) = tokio::io::split(ours);
        Self { reader: BufReader::new(reader).lines(), writer, next_id: 1, server: Value::Null }
    }

    /// With the handshake that most clients in the field make.
    pub async fn connect(gateway: &TestGateway) -> Self {
        Self::connect_able(gateway, json!({})).await
    }

    /// The same of a client that has `capabilities`.
    pub async fn connect_able(gateway: &TestGateway, capabilities: Value) -> Self {
        let mut downstream = Self::open(gateway);
        let client = json!({"name": "t", "version": "0"});
        let hello = json!({"protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": client});
        let answer = downstream.request("initialize", hello).await;
        downstream.server = answer["result"].clone();
        downstream.notify("notifications/initialized", json!({})).await;
        // Answered after the notification before it was handled by the loop.
        downstream.request("ping", json!({})).await;
        downstream
    }

    /// Sends a request and returns its id.
    pub async fn send(&mut self, method: &str, params: Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.write(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await;
        id
    }

    pub async fn notify(&mut self, method: &str, params: Value) {
        self.write(&json!({"jsonrpc": "2.0", "method": method, "params": params})).await;
    }

    /// The answer; what comes before it is dropped.
    pub async fn request(&mut self, method: &str, params: Value) -> Value {
        self.request_with_reports(method, params).await.1
    }

    /// The notifications that came before the answer, and the answer.
    pub async fn request_with_reports(&mut self, method: &str, params: Value) -> (Vec<Value>, Value) {
        let id = self.send(method, params).await;
        let mut before = Vec::new();
        loop {
            let message = self.next().await;
            if message["id"] == id {
                return (before, message);
            }
            before.push(message);
        }
    }

    /// Reads on until such a message comes.
    pub async fn expect(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self.next().await;
            if is_it(&message) {
                return message;
            }
        }
    }

    /// Answers a request of the server's.
    pub async fn answer(&mut self, question: &Value, result: Value) {
        self.write(&json!({"jsonrpc": "2.0", "id": question["id"], "result": result})).await;
    }

    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.reader.next_line()).await.expect("the gateway says nothing");
        serde_json::from_str(&line.unwrap().expect("the gateway hung up")).unwrap()
    }

    async fn write(&mut self, message: &Value) {
        self.writer.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }
}
