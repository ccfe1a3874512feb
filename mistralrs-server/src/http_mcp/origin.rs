//! Which web pages may call, and under which names this server answers. Both stop a page in somebody's browser from
//! driving a server on that person's machine, the second by DNS rebinding.

use std::net::IpAddr;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::error::EndpointError;
use crate::config::HttpMcpConfig;

/// What a browser may send besides the simple headers.
const ALLOWED_HEADERS: [HeaderName; 9] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::ACCEPT,
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("mcp-session-id"),
    HeaderName::from_static("mcp-protocol-version"),
    HeaderName::from_static("mcp-method"),
    HeaderName::from_static("mcp-name"),
    HeaderName::from_static("x-api-key"),
];
/// What a page may read of the answer.
const EXPOSED_HEADERS: [HeaderName; 2] = [HeaderName::from_static("mcp-session-id"), header::WWW_AUTHENTICATE];

/// The checks of `Origin` and `Host`.
#[derive(Debug, Clone)]
pub(super) struct OriginPolicy {
    origins: Allowed,
    /// Pages of this very machine may call a server that only this machine reaches.
    allows_loopback_origins: bool,
    hosts: Allowed,
    bound_to: IpAddr,
    methods: Vec<Method>,
}

#[derive(Debug, Clone)]
enum Allowed {
    Any,
    /// In lower case.
    Listed(Vec<String>),
}

impl Allowed {
    fn new(values: &[String]) -> Self {
        if values.iter().any(|value| value == "*") {
            return Self::Any;
        }
        Self::Listed(values.iter().map(|value| value.trim_end_matches('/').to_ascii_lowercase()).collect())
    }

    fn contains(&self, value: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(values) => values.iter().any(|listed| listed.eq_ignore_ascii_case(value)),
        }
    }
}

impl OriginPolicy {
    pub fn new(config: &HttpMcpConfig) -> Self {
        let bound_to = config.addr.ip();
        // Who listens beyond loopback has keys, and a rebound page does not know them: the names that such
        // a server goes by are many and harmless, so they are open until somebody lists them.
        let is_open = config.allowed_hosts.is_empty() && !bound_to.is_loopback();
        let hosts = if is_open { Allowed::Any } else { Allowed::new(&config.allowed_hosts) };
        let methods = config.allowed_methods.iter().filter_map(|method| method.parse().ok()).collect::<Vec<_>>();
        Self {
            origins: Allowed::new(&config.allowed_origins),
            allows_loopback_origins: bound_to.is_loopback(),
            hosts,
            bound_to,
            methods: if methods.is_empty() { vec![Method::GET, Method::POST, Method::DELETE] } else { methods },
        }
    }

    /// # Errors
    /// [`EndpointError::ForbiddenHost`] or [`EndpointError::ForbiddenOrigin`]; a request without `Origin` passes.
    pub fn check(&self, parts: &Parts) -> Result<(), EndpointError> {
        let host = parts.headers.get(header::HOST).map(HeaderValue::as_bytes);
        // HTTP/2 carries it in the URI.
        let host = host.or_else(|| parts.uri.authority().map(|authority| authority.as_str().as_bytes()));
        let host = String::from_utf8_lossy(host.unwrap_or_default());
        if !self.allows_host(&host) {
            return Err(EndpointError::ForbiddenHost(host.into_owned()));
        }
        match parts.headers.get(header::ORIGIN) {
            Some(origin) if !self.allows_origin(origin) => {
                Err(EndpointError::ForbiddenOrigin(String::from_utf8_lossy(origin.as_bytes()).into_owned()))
            }
            _ => Ok(()),
        }
    }

    /// The layer that answers preflights and lets allowed pages read answers.
    pub fn cors(&self) -> CorsLayer {
        let policy = self.clone();
        CorsLayer::new()
            .allow_origin(AllowOrigin::predicate(move |origin, _parts| policy.allows_origin(origin)))
            .allow_methods(self.methods.clone())
            .allow_headers(ALLOWED_HEADERS)
            .expose_headers(EXPOSED_HEADERS)
            .max_age(Duration::from_mins(10))
    }

    fn allows_host(&self, authority: &str) -> bool {
        if matches!(self.hosts, Allowed::Any) {
            return true;
        }
        let Ok(parsed) = authority.parse::<http::uri::Authority>() else { return false };
        let host = parsed.host();
        is_loopback(host)
            || unbracketed(host).parse() == Ok(self.bound_to)
            || self.hosts.contains(host)
            || self.hosts.contains(authority)
    }

    fn allows_origin(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        if self.origins.contains(origin) {
            return true;
        }
        let host = origin.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
        self.allows_loopback_origins && host.is_some_and(|host| is_loopback(&host))
    }
}

fn is_loopback(host: &str) -> bool {
    let is_local_name = host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost");
    is_local_name || unbracketed(host).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn unbracketed(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::http_mcp::tests::config;

    struct Setup {
        addr: &'static str,
        origins: &'static [&'static str],
        hosts: &'static [&'static str],
    }

    const LOOPBACK: Setup = Setup { addr: "127.0.0.1:4322", origins: &[], hosts: &[] };
    const EVERYWHERE: Setup = Setup { addr: "0.0.0.0:4322", origins: &[], hosts: &[] };

    impl Setup {
        fn policy(&self) -> OriginPolicy {
            let mut config = config();
            config.addr = self.addr.parse().unwrap();
            config.allowed_origins = self.origins.iter().map(ToString::to_string).collect();
            config.allowed_hosts = self.hosts.iter().map(ToString::to_string).collect();
            OriginPolicy::new(&config)
        }

        fn check(&self, host: &str, origin: Option<&str>, expected: &str) {
            let mut request = Request::builder().header("host", host);
            if let Some(origin) = origin {
                request = request.header("origin", origin);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let answer = self.policy().check(&parts).map_or_else(|error| error.kind(), |()| "passes");
            assert_eq!(answer, expected, "host {host}, origin {origin:?}");
        }
    }

    #[test]
    fn a_loopback_server_answers_to_loopback_names_only() {
        for host in ["localhost:4322", "127.0.0.1:4322", "127.0.0.1", "[::1]:4322", "app.localhost", "127.8.9.1"] {
            LOOPBACK.check(host, None, "passes");
        }
        for host in ["rebound.example:4322", "localhost.rebound.example", "10.0.0.1", "", "a b"] {
            LOOPBACK.check(host, None, "forbidden_host");
        }
    }

    #[test]
    fn listed_hosts_are_answered_with_or_without_port_and_a_star_is_any() {
        let listed = Setup { hosts: &["gateway.example", "other.example:8080"], ..LOOPBACK };
        listed.check("Gateway.example:4322", None, "passes");
        listed.check("other.example:8080", None, "passes");
        listed.check("other.example:9090", None, "forbidden_host");
        Setup { hosts: &["*"], ..LOOPBACK }.check("rebound.example", None, "passes");
    }

    #[test]
    fn a_server_beyond_loopback_answers_to_any_name_until_some_are_listed() {
        EVERYWHERE.check("inference.internal:4322", None, "passes");
        let listed = Setup { hosts: &["inference.internal"], ..EVERYWHERE };
        listed.check("inference.internal:4322", None, "passes");
        listed.check("elsewhere.example", None, "forbidden_host");
    }

    #[test]
    fn pages_of_this_machine_may_call_a_loopback_server_and_no_others() {
        LOOPBACK.check("localhost", Some("http://localhost:6274"), "passes");
        LOOPBACK.check("localhost", Some("http://[::1]:3000"), "passes");
        for origin in ["https://evil.example", "null", "http://localhost.evil.example", "file://", "http://"] {
            LOOPBACK.check("localhost", Some(origin), "forbidden_origin");
        }
        EVERYWHERE.check("server", Some("http://localhost:3000"), "forbidden_origin");
    }

    #[test]
    fn listed_origins_may_call_and_a_star_is_any() {
        let listed = Setup { origins: &["https://app.example/"], ..EVERYWHERE };
        listed.check("server", Some("https://app.example"), "passes");
        listed.check("server", Some("http://app.example"), "forbidden_origin");
        Setup { origins: &["*"], ..EVERYWHERE }.check("server", Some("null"), "passes");
    }
}
