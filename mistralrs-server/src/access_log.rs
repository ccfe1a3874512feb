//! One line per request, when its answer is sent or its client has left: target `access`, level info. It says who asked for
//! what, when and with what outcome, and never what was said: no prompt, no query string, no key.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{ConnectInfo, Request};

use crate::api_keys::Principal;
use crate::request_id::X_REQUEST_ID;

/// Bytes of a path that are logged: paths are the client's to choose.
const MAX_PATH_BYTES: usize = 256;

tokio::task_local! {
    /// What becomes known of the request that this task handles: written where it is found out, read when it is answered.
    static FINDINGS: RefCell<Findings>;
}

/// What is not known when a request arrives.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    /// The model that answers; empty if none was asked.
    pub model: String,
    /// Whose key it was.
    pub principal: Option<Principal>,
}

/// The request that this task handles is answered by `model`. Only names of loaded models: labels are bounded.
pub(crate) fn found_model(model: &str) {
    note(|findings| model.clone_into(&mut findings.model));
}

/// The request that this task handles came from `principal`.
pub(crate) fn found_principal(principal: Principal) {
    note(|findings| findings.principal = Some(principal));
}

fn note(write: impl FnOnce(&mut Findings)) {
    // Outside of a request, as in unit tests of handlers, there is nothing to note.
    let _ = FINDINGS.try_with(|findings| write(&mut findings.borrow_mut()));
}

/// Runs `handling` and gives what it found out.
pub(crate) async fn gather<T>(handling: impl Future<Output = T>) -> (T, Findings) {
    let handling = async {
        let outcome = handling.await;
        (outcome, FINDINGS.with(RefCell::take))
    };
    FINDINGS.scope(RefCell::default(), handling).await
}

/// A request as it arrived.
#[derive(Debug)]
pub(crate) struct Arrival {
    path: String,
    request_id: String,
    remote: Option<SocketAddr>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of the answer was handed to the connection.
    Sent,
    /// Before that the client left, or took nothing for too long.
    ClientLeft,
}

/// What was answered.
pub(crate) struct Answered<'a> {
    pub method: &'static str,
    /// The route's pattern.
    pub route: &'a str,
    pub status: &'a str,
    pub outcome: Outcome,
    pub duration: Duration,
    pub num_bytes: u64,
    pub findings: &'a Findings,
}

impl Arrival {
    /// What of `request` is logged when it is answered.
    pub fn new(request: &Request) -> Self {
        let id = request.headers().get(X_REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
        let remote = request.extensions().get::<ConnectInfo<SocketAddr>>();
        Self {
            path: bounded(request.uri().path()).to_owned(),
            request_id: id.to_owned(),
            remote: remote.map(|ConnectInfo(address)| *address),
        }
    }

    /// Writes the line.
    pub fn log(&self, answered: &Answered<'_>) {
        let Answered { method, route, status, outcome, duration, num_bytes, findings } = answered;
        tracing::info!(
            target: "access",
            method,
            path = self.path,
            route,
            status,
            outcome = match outcome {
                Outcome::Sent => "sent",
                Outcome::ClientLeft => "client_left",
            },
            duration_ms = duration.as_secs_f64() * 1e3,
            bytes = num_bytes,
            request_id = self.request_id,
            model = findings.model,
            key = findings.principal.and_then(Principal::key_id),
            remote = self.remote.map(tracing::field::display),
            "request"
        );
    }
}

/// A URI's path is ASCII, so that it can be cut anywhere.
fn bounded(path: &str) -> &str {
    path.get(..MAX_PATH_BYTES).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_found_out_belongs_to_the_request_of_the_task() {
        let handle = |model: &'static str| {
            gather(async move {
                found_model(model);
                tokio::task::yield_now().await;
            })
        };
        let (((), one), ((), two)) = tokio::join!(handle("one"), handle("two"));
        assert_eq!((one.model.as_str(), two.model.as_str()), ("one", "two"));
        found_model("outside of a request this is nobody's");
    }

    #[test]
    fn of_a_long_path_only_the_beginning_is_logged() {
        assert_eq!(bounded("/v1"), "/v1");
        assert_eq!(bounded(&"x".repeat(10_000)).len(), MAX_PATH_BYTES);
    }
}
