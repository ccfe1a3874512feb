//! URIs of the native resources: `mistralrs://status`, `mistralrs://models`, `mistralrs://models/{id}` and
//! `mistralrs://models/{id}/chat-template`. A hub id has a slash in it, which `{id}` writes as `%2F`; read, it may stand
//! as it is.

use std::fmt::{self, Write};

use mistralrs_mcp::NATIVE_SCHEME;

const MODELS: &str = "models";
const CHAT_TEMPLATE: &str = "/chat-template";

/// What can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ResourceUri {
    /// How the process stands.
    Status,
    /// All loaded models.
    Models,
    /// One, by its id.
    Model(String),
    /// Its chat template, by the model's id.
    ChatTemplate(String),
}

impl ResourceUri {
    /// Of a URI that means one; whether there is such a model is another question.
    pub fn parse(uri: &str) -> Option<Self> {
        let path = uri.strip_prefix(NATIVE_SCHEME)?;
        match path.strip_suffix('/').unwrap_or(path) {
            "status" => Some(Self::Status),
            MODELS => Some(Self::Models),
            path => {
                let model = path.strip_prefix(MODELS)?.strip_prefix('/')?;
                match model.strip_suffix(CHAT_TEMPLATE) {
                    Some(model) => decode(model).map(Self::ChatTemplate),
                    None => decode(model).map(Self::Model),
                }
            }
        }
    }

    /// Its name in access policies and lists.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Models => MODELS,
            Self::Model(_) => "model",
            Self::ChatTemplate(_) => "chat_template",
        }
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => write!(f, "{NATIVE_SCHEME}status"),
            Self::Models => write!(f, "{NATIVE_SCHEME}{MODELS}"),
            Self::Model(id) => write!(f, "{NATIVE_SCHEME}{MODELS}/{}", encode(id)),
            Self::ChatTemplate(id) => write!(f, "{NATIVE_SCHEME}{MODELS}/{}{CHAT_TEMPLATE}", encode(id)),
        }
    }
}

/// As RFC 6570 expands `{id}`: all but unreserved characters become `%XX`.
fn encode(id: &str) -> String {
    let mut encoded = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            byte => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

/// The inverse; `None` for what no id is written as.
fn decode(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok().filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_leads_back_whatever_the_id() {
        for id in ["SmolLM2", "org/name", "ä b%2F?#", "x/chat-template", "models", "{id}"] {
            for uri in [ResourceUri::Model(id.to_owned()), ResourceUri::ChatTemplate(id.to_owned())] {
                assert_eq!(ResourceUri::parse(&uri.to_string()), Some(uri.clone()), "{uri}");
            }
        }
        assert_eq!(ResourceUri::Model("org/name".to_owned()).to_string(), "mistralrs://models/org%2Fname");
    }

    #[test]
    fn a_slash_may_stand_as_it_is_and_one_at_the_end_means_nothing() {
        let model = |id: &str| Some(ResourceUri::Model(id.to_owned()));
        assert_eq!(ResourceUri::parse("mistralrs://models/org/name"), model("org/name"));
        assert_eq!(ResourceUri::parse("mistralrs://models/org/name/"), model("org/name"));
        let template = Some(ResourceUri::ChatTemplate("org/name".to_owned()));
        assert_eq!(ResourceUri::parse("mistralrs://models/org/name/chat-template"), template);
        assert_eq!(ResourceUri::parse("mistralrs://status/"), Some(ResourceUri::Status));
        assert_eq!(ResourceUri::parse("mistralrs://models/{id}").map(|uri| uri.kind()), Some("model"));
    }

    #[test]
    fn what_means_nothing_is_none() {
        for uri in [
            "mistralrs://",
            "mistralrs://model",
            "mistralrs://models/%",
            "mistralrs://models/%zz",
            "mistralrs://models/%FF",
            "file:///status",
        ] {
            assert_eq!(ResourceUri::parse(uri), None, "{uri}");
        }
    }
}
