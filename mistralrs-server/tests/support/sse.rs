//! Reading `text/event-stream` bodies, whole or as they arrive.

use std::time::Instant;

use serde_json::Value;

/// One event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its `event:` field, `message` where it has none.
    pub name: String,
    /// Its `data:` lines, joined.
    pub data: String,
    /// Its `id:` field.
    pub id: Option<String>,
    /// When its last byte was read.
    pub at: Option<Instant>,
}

impl Event {
    /// The data as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.data).map_err(|error| anyhow::anyhow!("{error} in {:?}", self.data))
    }
}

/// Takes bytes as they come and gives events as they end.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: String,
}

impl Reader {
    /// The events that `bytes` completes. Comments and empty events are left out.
    pub fn push(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<Event>> {
        self.buffer.push_str(&std::str::from_utf8(bytes)?.replace("\r\n", "\n"));
        let mut events = Vec::new();
        while let Some(end) = self.buffer.find("\n\n") {
            let block: String = self.buffer.drain(..end + 2).collect();
            events.extend(parse_block(&block));
        }
        Ok(events)
    }
}

/// All events of a whole body.
pub fn parse(body: &str) -> anyhow::Result<Vec<Event>> {
    let mut reader = Reader::default();
    let events = reader.push(body.as_bytes())?;
    anyhow::ensure!(reader.buffer.trim().is_empty(), "the stream ends inside an event: {:?}", reader.buffer);
    Ok(events)
}

/// Reads `response` to its end.
pub async fn read_all(mut response: reqwest::Response) -> anyhow::Result<Vec<Event>> {
    let mut reader = Reader::default();
    let mut events = Vec::new();
    while let Some(bytes) = response.chunk().await? {
        let at = Instant::now();
        events.extend(reader.push(&bytes)?.into_iter().map(|event| Event { at: Some(at), ..event }));
    }
    anyhow::ensure!(reader.buffer.trim().is_empty(), "the stream ends inside an event: {:?}", reader.buffer);
    Ok(events)
}

fn parse_block(block: &str) -> Option<Event> {
    let field = |line: &str, name: &str| {
        line.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')).map(|rest| rest.trim_start().to_owned())
    };
    let data: Vec<String> = block.lines().filter_map(|line| field(line, "data")).collect();
    let name = block.lines().find_map(|line| field(line, "event"));
    let id = block.lines().find_map(|line| field(line, "id"));
    if data.is_empty() && name.is_none() {
        return None;
    }
    Some(Event { name: name.unwrap_or_else(|| "message".to_owned()), data: data.join("\n"), id, at: None })
}
