//! What a caller can read: JSON, an event stream, or both.

use http::{HeaderMap, header};

use super::error::EndpointError;

/// The types an answer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Accept {
    /// `application/json` is named or covered by a wildcard.
    pub json: bool,
    /// `text/event-stream`.
    pub events: Events,
}

/// Whether an event stream may be the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Events {
    /// Not readable.
    Refused,
    /// Covered by a wildcard, or no type was named at all: only for who asks for a stream otherwise.
    Tolerated,
    /// `text/event-stream` itself is named: the caller is ready for one at any time.
    Named,
}

impl Accept {
    /// What curl without `-H Accept` means.
    const ANYTHING: Self = Self { json: true, events: Events::Tolerated };

    /// Reads all `Accept` headers; none at all means anything.
    ///
    /// # Errors
    /// [`EndpointError::NotAcceptable`] if they name neither type.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, EndpointError> {
        let mut accept = Self { json: false, events: Events::Refused };
        let mut is_empty = true;
        for range in
            headers.get_all(header::ACCEPT).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        {
            let range = String::from_utf8_lossy(range);
            is_empty &= range.trim().is_empty();
            accept.admit(&range);
        }
        match accept {
            _ if is_empty => Ok(Self::ANYTHING),
            Self { json: false, events: Events::Refused } => Err(EndpointError::NotAcceptable),
            accept => Ok(accept),
        }
    }

    fn admit(&mut self, range: &str) {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let is_refused = parts.filter_map(|part| part.strip_prefix("q=")).any(|q| q.parse() == Ok(0.0_f32));
        if is_refused {
            return;
        }
        match media_type.as_str() {
            "application/json" | "application/*" => self.json = true,
            "text/event-stream" => self.events = Events::Named,
            "text/*" => self.tolerate_events(),
            "*/*" => {
                self.json = true;
                self.tolerate_events();
            }
            _ => {}
        }
    }

    fn tolerate_events(&mut self) {
        if self.events == Events::Refused {
            self.events = Events::Tolerated;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &[&'static str], expected: &str) {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, http::HeaderValue::from_static(value));
        }
        let read = match Accept::from_headers(&headers) {
            Ok(Accept { json, events }) => format!("json {json}, events {events:?}"),
            Err(error) => error.kind().to_owned(),
        };
        assert_eq!(read, expected, "{accept:?}");
    }

    #[test]
    fn no_header_and_a_wildcard_read_anything_but_prefer_json() {
        check(&[], "json true, events Tolerated");
        check(&[""], "json true, events Tolerated");
        check(&["*/*"], "json true, events Tolerated");
    }

    #[test]
    fn named_types_are_taken_from_any_number_of_headers_in_any_case() {
        check(&["application/json"], "json true, events Refused");
        check(&["text/event-stream"], "json false, events Named");
        check(&["application/json, Text/Event-Stream"], "json true, events Named");
        check(&["application/json", "text/event-stream"], "json true, events Named");
        check(&["text/event-stream, */*"], "json true, events Named");
        check(&["text/html,application/xhtml+xml,*/*;q=0.8"], "json true, events Tolerated");
    }

    #[test]
    fn a_quality_of_zero_takes_a_type_out() {
        check(&["application/json;q=0, text/event-stream"], "json false, events Named");
        check(&["application/json; q=0.1"], "json true, events Refused");
    }

    #[test]
    fn neither_type_is_not_acceptable() {
        check(&["text/html"], "not_acceptable");
        check(&["image/png, application/xml"], "not_acceptable");
    }
}
