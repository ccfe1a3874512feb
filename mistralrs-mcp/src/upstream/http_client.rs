//! The HTTP client of upstreams that are URLs, whatever they speak.

use std::time::Duration;

use http::Uri;

use crate::config::UpstreamConfig;

/// An idle connection is kept for the next call; servers commonly close theirs after 60 to 120 seconds.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(55);
/// A peer that vanished without a word is noticed by the kernel.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Of one message, and so of one result: as much as a line of a child's stdout may have.
pub(super) const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// A client with the upstream's limits, for `url`.
pub(super) fn builder(upstream: &UpstreamConfig, url: &str) -> reqwest::ClientBuilder {
    let client = reqwest::Client::builder()
        .connect_timeout(upstream.connect_timeout)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .user_agent(concat!("mistralrs-server/", env!("CARGO_PKG_VERSION")));
    // A proxy that the environment names is for what lies outside this machine.
    if is_loopback(url) { client.no_proxy() } else { client }
}

/// Whether it lies on this machine.
pub(super) fn is_loopback(url: &str) -> bool {
    let Some(host) = url.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)) else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_not_used_for_this_machine() {
        for url in ["http://127.0.0.1:1/x", "http://localhost/x", "http://[::1]:8/", "https://127.1.2.3", "ws://[::1]/"]
        {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["http://10.0.0.1/", "https://example.com/localhost", "http://localhost.example.com"] {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
