//! Sessions that name no state, for clients of 2024-11-05. That revision knew no session ids, and its clients (candle-vllm
//! is one) never shake hands again when theirs is gone; such an id neither expires nor ends with the process.

use std::collections::VecDeque;

use http::{HeaderMap, HeaderValue};
use mistralrs_telemetry::Mutex;
use uuid::Uuid;

use super::dispatch::SESSION_ID;
use super::error::EndpointError;

/// Tells these ids from those of sessions with state.
const PREFIX: &str = "stateless-";
/// Ids that are remembered as ended, oldest forgotten first: few clients of that age say goodbye.
const MAX_ENDED: usize = 1_024;

/// The ids that were ended; all others are good.
pub(super) struct HandshakeOnly {
    /// Written by DELETE, read by each request with such an id.
    ended: Mutex<VecDeque<Uuid>>,
}

impl HandshakeOnly {
    pub fn new() -> Self {
        Self { ended: Mutex::new("mcp_ended_sessions", VecDeque::new()) }
    }

    /// A new id.
    pub fn issue() -> HeaderValue {
        HeaderValue::from_str(&format!("{PREFIX}{}", Uuid::new_v4())).expect("a UUID is ASCII")
    }

    /// The id in `headers`, if it is of this kind.
    ///
    /// # Errors
    /// [`EndpointError::UnknownSession`] if it was ended.
    pub fn find(&self, headers: &HeaderMap) -> Result<Option<Uuid>, EndpointError> {
        let Some(id) = named(headers) else { return Ok(None) };
        if self.ended.lock().contains(&id) { Err(EndpointError::UnknownSession) } else { Ok(Some(id)) }
    }

    /// Ends one at its client's wish.
    pub fn end(&self, id: Uuid) {
        let mut ended = self.ended.lock();
        ended.truncate(MAX_ENDED - 1);
        ended.push_front(id);
    }
}

fn named(headers: &HeaderMap) -> Option<Uuid> {
    let id = headers.get(SESSION_ID)?.to_str().ok()?;
    id.strip_prefix(PREFIX)?.parse().ok()
}
