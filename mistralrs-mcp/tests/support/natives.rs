//! What a process offers of its own, without a process: a resource `mistralrs://status`, a template, a prompt `greet`, and
//! a model that says what it was asked.
#![expect(deprecated, reason = "sampling is what every server before 2026-07-28 asks for")]

use async_trait::async_trait;
use mistralrs_mcp::rmcp::model::{
    ArgumentInfo, CreateMessageRequestParams, CreateMessageResult, ErrorData, GetPromptResult, JsonObject, Prompt,
    PromptMessage, ReadResourceResult, Reference, Resource, ResourceContents, ResourceTemplate, Role, SamplingMessage,
    SamplingMessageContentBlock,
};
use mistralrs_mcp::{GatewayStatus, LocalOfferError, LocalOffers, LocalSampler};
use serde_json::Value;
use tokio::sync::watch;

#[derive(Default)]
pub struct FakeOffers {
    /// Said to have changed by the test.
    pub changed: watch::Sender<()>,
}

#[async_trait]
impl LocalOffers for FakeOffers {
    fn resources(&self) -> Vec<Resource> {
        vec![Resource::new("mistralrs://status", "status")]
    }

    fn templates(&self) -> Vec<ResourceTemplate> {
        vec![ResourceTemplate::new("mistralrs://models/{id}", "model")]
    }

    fn prompts(&self) -> Vec<Prompt> {
        vec![Prompt::new("test_simple_prompt", Some("Greets."), None)]
    }

    fn kind_of(&self, uri: &str) -> Option<&'static str> {
        match uri.strip_prefix("mistralrs://")? {
            "status" => Some("status"),
            path => path.starts_with("models/").then_some("model"),
        }
    }

    fn read(&self, uri: &str, gateway: &GatewayStatus) -> Result<ReadResourceResult, LocalOfferError> {
        let upstreams: Vec<_> =
            gateway.upstreams.iter().map(|upstream| (upstream.id.as_str(), upstream.failure.is_none())).collect();
        let text = match uri {
            "mistralrs://status" => format!("{upstreams:?}, {} sessions", gateway.num_sessions),
            "mistralrs://models/tiny" => "tiny".to_owned(),
            _ => return Err(LocalOfferError::Unknown),
        };
        Ok(ReadResourceResult::new(vec![ResourceContents::text(text, uri)]).with_ttl_ms(7))
    }

    async fn prompt(&self, _name: &str, arguments: JsonObject) -> Result<GetPromptResult, LocalOfferError> {
        let Some(name) = arguments.get("name").and_then(Value::as_str) else {
            return Err(LocalOfferError::InvalidArguments("`name` is missing".to_owned()));
        };
        Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, format!("Hello {name}"))]))
    }

    fn complete(&self, _of: &Reference, argument: &ArgumentInfo) -> Vec<String> {
        ["tiny", "tall", "small"].into_iter().filter(|id| id.starts_with(&argument.value)).map(str::to_owned).collect()
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// Answers with what it was asked and how much it may say.
pub struct Parrot;

#[async_trait]
impl LocalSampler for Parrot {
    async fn create_message(&self, request: CreateMessageRequestParams) -> Result<CreateMessageResult, ErrorData> {
        let content = request.messages.into_iter().flat_map(|message| message.content.into_vec());
        let texts = content.filter_map(|block| match block {
            SamplingMessageContentBlock::Text(text) => Some(text.text),
            _ => None,
        });
        let words = format!("{} in {}", texts.collect::<String>(), request.max_tokens);
        Ok(CreateMessageResult::new(SamplingMessage::assistant_text(words), "parrot".to_owned()))
    }
}
