//! The process and its models as MCP resources, and the model's chat format as a prompt.
//!
//! The gateway alone, without a model, has its status and nothing else.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use mistralrs_core::model::EngineStatus;
use mistralrs_core::request::ChatPrompt;
use mistralrs_core::{Model, ModelRouter};
use mistralrs_mcp::rmcp::model::{
    ArgumentInfo, CacheScope, GetPromptResult, JsonObject, Prompt, PromptArgument, PromptMessage, ReadResourceResult,
    Reference, Resource, ResourceContents, ResourceTemplate, Role,
};
use mistralrs_mcp::{GatewayStatus, LocalOfferError, LocalOffers};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

use super::resource_uri::ResourceUri;
use super::{Failure, LoadedModel, parse};
use crate::app::AppState;
use crate::health::Stage;

const RENDER_CHAT: &str = "render_chat";
const JSON: &str = "application/json";
/// Numbers of the last step: who asks twice within a second saw the same.
const LIVE_TTL_MS: u64 = 1_000;
/// A template changes with its model only, and then the list of resources does.
const TEMPLATE_TTL_MS: u64 = 60_000;

/// What the process tells of itself, and of the models that it serves.
pub struct ServerOffers {
    app: AppState,
    /// `None`: the gateway alone.
    models: Option<Arc<ModelRouter>>,
    started: Instant,
}

/// `mistralrs://status`.
#[derive(Serialize)]
struct Status {
    version: &'static str,
    stage: Stage,
    uptime_seconds: u64,
    /// MCP sessions that are told of changes.
    num_sessions: usize,
    /// Resources that clients listen to.
    num_subscriptions: usize,
    models: Vec<ModelLoad>,
    upstreams: Vec<UpstreamLoad>,
}

/// A model in the status.
#[derive(Serialize)]
struct ModelLoad {
    id: String,
    #[serde(flatten)]
    load: EngineLoad,
}

/// An upstream in the status. Why one is down is for the log: it may hold paths and addresses.
#[derive(Serialize)]
struct UpstreamLoad {
    name: String,
    is_connected: bool,
}

/// `mistralrs://models/{id}`.
#[derive(Serialize)]
struct DescribedModel {
    #[serde(flatten)]
    model: LoadedModel,
    /// Seconds since the epoch when it was loaded.
    created: u64,
    num_weight_bytes: u64,
    /// Tokens that the KV cache can hold over all sequences.
    num_kv_tokens: usize,
    #[serde(flatten)]
    load: EngineLoad,
}

/// What an engine held after its last step.
#[expect(clippy::struct_field_names, reason = "counts are called so")]
#[derive(Serialize)]
struct EngineLoad {
    num_running: usize,
    num_waiting: usize,
    num_kv_blocks_used: usize,
    num_kv_blocks_total: usize,
}

/// Arguments of `render_chat`. A prompt's arguments are strings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RenderChatArguments {
    message: String,
    system: Option<String>,
    model: Option<String>,
}

impl ServerOffers {
    /// Of a process that started now and will serve `models`.
    pub fn new(app: AppState, models: Option<Arc<ModelRouter>>) -> Self {
        Self { app, models, started: Instant::now() }
    }

    fn loaded(&self) -> Vec<Model> {
        self.models.as_ref().map(|models| models.models()).unwrap_or_default()
    }

    fn find(&self, id: &str) -> Result<Model, LocalOfferError> {
        self.loaded().into_iter().find(|model| model.info().id == id).ok_or(LocalOfferError::Unknown)
    }

    fn status(&self, gateway: &GatewayStatus) -> Status {
        let models = self.loaded().into_iter();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            stage: self.app.readiness.stage(),
            uptime_seconds: self.started.elapsed().as_secs(),
            num_sessions: gateway.num_sessions,
            num_subscriptions: gateway.num_subscriptions,
            models: models
                .map(|model| ModelLoad { id: model.info().id.clone(), load: model.status().into() })
                .collect(),
            upstreams: gateway
                .upstreams
                .iter()
                .map(|upstream| UpstreamLoad {
                    name: upstream.id.to_string(),
                    is_connected: upstream.failure.is_none(),
                })
                .collect(),
        }
    }

    async fn render_chat(&self, arguments: JsonObject) -> Result<GetPromptResult, Failure> {
        let RenderChatArguments { message, system, model } = parse(arguments)?;
        let model = super::route(self.models.as_deref(), model.as_deref())?;
        let system = system.map(|system| json!({ "role": "system", "content": system }));
        let user = json!({ "role": "user", "content": message });
        let messages = system.into_iter().chain([user]).collect();
        let text = model.render_chat(ChatPrompt { messages, ..ChatPrompt::default() }).await?;
        let description =
            format!("What `{}` reads; as `prompt` of the tool `generate` it is answered.", model.info().id);
        Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)]).with_description(description))
    }
}

#[async_trait]
impl LocalOffers for ServerOffers {
    fn resources(&self) -> Vec<Resource> {
        let status = resource(&ResourceUri::Status, "Server status").with_description(
            "Uptime, queues and KV memory of the models, and which upstream MCP servers are connected.",
        );
        let mut resources = vec![status];
        if self.models.is_some() {
            let models = resource(&ResourceUri::Models, "Loaded models");
            resources.push(models.with_description("Each with its architecture, sizes, quantization and load."));
        }
        for model in self.loaded() {
            let id = &model.info().id;
            resources.push(resource(&ResourceUri::Model(id.clone()), format!("Model {id}")));
            if model.chat_template().is_some() {
                let template = resource(&ResourceUri::ChatTemplate(id.clone()), format!("Chat template of {id}"));
                resources.push(template.with_mime_type("text/x-jinja"));
            }
        }
        resources
    }

    fn templates(&self) -> Vec<ResourceTemplate> {
        if self.models.is_none() {
            return Vec::new();
        }
        let model = ResourceTemplate::new("mistralrs://models/{id}", "model")
            .with_title("A loaded model")
            .with_description("Architecture, context length, quantization, KV memory and load, as JSON.")
            .with_mime_type(JSON);
        let template = ResourceTemplate::new("mistralrs://models/{id}/chat-template", "chat_template")
            .with_title("A model's chat template")
            .with_description("The Jinja template that turns messages into the text that the model reads.")
            .with_mime_type("text/x-jinja");
        vec![model, template]
    }

    fn prompts(&self) -> Vec<Prompt> {
        if self.models.is_none() {
            return Vec::new();
        }
        let argument = |name: &str, description: &str| PromptArgument::new(name).with_description(description);
        let arguments = vec![
            argument("message", "What the user says.").with_required(true),
            argument("system", "What the model is told before it.").with_required(false),
            argument("model", "Whose format, by the model's id; that of the first one loaded if absent.")
                .with_required(false),
        ];
        let description = "The text that the local model reads for a chat message, in its own chat format.";
        vec![Prompt::new(RENDER_CHAT, Some(description), Some(arguments)).with_title("Render a chat message")]
    }

    fn kind_of(&self, uri: &str) -> Option<&'static str> {
        ResourceUri::parse(uri).map(|uri| uri.kind())
    }

    fn read(&self, uri: &str, gateway: &GatewayStatus) -> Result<ReadResourceResult, LocalOfferError> {
        match ResourceUri::parse(uri).ok_or(LocalOfferError::Unknown)? {
            ResourceUri::Status => Ok(live(uri, &self.status(gateway))),
            ResourceUri::Models if self.models.is_some() => {
                let models: Vec<_> = self.loaded().iter().map(DescribedModel::from).collect();
                Ok(live(uri, &json!({ "models": models })))
            }
            ResourceUri::Models => Err(LocalOfferError::Unknown),
            ResourceUri::Model(id) => Ok(live(uri, &DescribedModel::from(&self.find(&id)?))),
            ResourceUri::ChatTemplate(id) => {
                let model = self.find(&id)?;
                let source = model.chat_template().ok_or(LocalOfferError::Unknown)?;
                let contents = ResourceContents::text(source, uri).with_mime_type("text/x-jinja");
                Ok(fresh_for(TEMPLATE_TTL_MS, contents))
            }
        }
    }

    async fn prompt(&self, name: &str, arguments: JsonObject) -> Result<GetPromptResult, LocalOfferError> {
        if name != RENDER_CHAT {
            return Err(LocalOfferError::Unknown);
        }
        self.render_chat(arguments).await.map_err(|failure| match failure {
            Failure::Arguments(reason) | Failure::Refused(reason) => LocalOfferError::InvalidArguments(reason),
        })
    }

    fn complete(&self, of: &Reference, argument: &ArgumentInfo) -> Vec<String> {
        let names_model = match of {
            Reference::Prompt(_) => argument.name == "model",
            Reference::Resource(_) => argument.name == "id",
            _ => false,
        };
        if !names_model {
            return Vec::new();
        }
        let written = argument.value.to_lowercase();
        let ids = self.loaded().into_iter().map(|model| model.info().id.clone());
        ids.filter(|id| id.to_lowercase().starts_with(&written)).collect()
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.app.models.changes()
    }
}

impl From<&Model> for DescribedModel {
    fn from(model: &Model) -> Self {
        let info = model.info();
        Self {
            model: model.into(),
            created: info.created,
            num_weight_bytes: info.description.num_weight_bytes,
            num_kv_tokens: info.num_kv_tokens,
            load: model.status().into(),
        }
    }
}

impl From<EngineStatus> for EngineLoad {
    fn from(status: EngineStatus) -> Self {
        Self {
            num_running: status.num_running,
            num_waiting: status.num_waiting,
            num_kv_blocks_used: status.num_blocks_used,
            num_kv_blocks_total: status.num_blocks_total,
        }
    }
}

fn resource(uri: &ResourceUri, title: impl Into<String>) -> Resource {
    Resource::new(uri.to_string(), uri.kind()).with_title(title).with_mime_type(JSON)
}

/// What is as old as the last step.
fn live(uri: &str, value: &impl Serialize) -> ReadResourceResult {
    let text = serde_json::to_string_pretty(value).expect("numbers and strings are plain JSON");
    fresh_for(LIVE_TTL_MS, ResourceContents::text(text, uri).with_mime_type(JSON))
}

/// For whoever asked: what it holds depends on what they may see.
fn fresh_for(ttl_ms: u64, contents: ResourceContents) -> ReadResourceResult {
    ReadResourceResult::new(vec![contents]).with_ttl_ms(ttl_ms).with_cache_scope(CacheScope::Private)
}

#[cfg(test)]
mod tests {
    use mistralrs_mcp::UpstreamStatus;
    use mistralrs_mcp::config::UpstreamId;
    use serde_json::Value;

    use super::*;
    use crate::app::App;
    use crate::config::{Configuration, Environment, Sources};
    use crate::metrics::new_registry;

    fn offers(serves_models: impl Fn(&App) -> Option<Arc<ModelRouter>>) -> ServerOffers {
        let sources = Sources { flags: json!({ "http_mcp": { "port": 0 } }), ..Sources::default() };
        let settings = Configuration::load(sources, Environment::default()).unwrap().settings().unwrap();
        let app = App::new(&settings.server, new_registry());
        let models = serves_models(&app);
        ServerOffers::new(app, models)
    }

    fn text(result: &ReadResourceResult) -> &str {
        match &result.contents[0] {
            ResourceContents::TextResourceContents { text, .. } => text,
            other => panic!("not text: {other:?}"),
        }
    }

    #[test]
    fn the_gateway_alone_has_its_status_only() {
        let offers = offers(|_| None);
        let uris: Vec<_> = offers.resources().into_iter().map(|resource| resource.uri).collect();
        assert_eq!(uris, ["mistralrs://status"]);
        assert!(offers.templates().is_empty() && offers.prompts().is_empty());
        let upstream = |name: &str, failure: Option<&str>| UpstreamStatus {
            id: UpstreamId::new(name),
            failure: failure.map(str::to_owned),
        };
        let upstreams = vec![upstream("up", None), upstream("down", Some("/secret/path is missing"))];
        let read = offers
            .read("mistralrs://status", &GatewayStatus { upstreams, num_sessions: 3, num_subscriptions: 2 })
            .unwrap();
        assert_eq!((read.ttl_ms, read.cache_scope), (Some(1_000), Some(CacheScope::Private)));
        let mut status: Value = serde_json::from_str(text(&read)).unwrap();
        assert!(status["uptime_seconds"].take().is_u64());
        let expected = json!({
            "version": env!("CARGO_PKG_VERSION"), "stage": "loading", "uptime_seconds": null, "num_sessions": 3,
            "num_subscriptions": 2, "models": [],
            "upstreams": [{"name": "up", "is_connected": true}, {"name": "down", "is_connected": false}],
        });
        assert_eq!(status, expected);
        for uri in ["mistralrs://models", "mistralrs://models/x", "mistralrs://models/x/chat-template", "mistralrs://x"]
        {
            let refused = offers.read(uri, &GatewayStatus::default()).unwrap_err();
            assert!(matches!(refused, LocalOfferError::Unknown), "{uri}");
        }
    }

    #[tokio::test]
    async fn a_model_that_is_still_loading_is_announced_by_template_and_prompt() {
        let offers = offers(|app| Some(Arc::clone(&app.models)));
        let uris: Vec<_> = offers.resources().into_iter().map(|resource| resource.uri).collect();
        assert_eq!(uris, ["mistralrs://status", "mistralrs://models"]);
        assert_eq!(offers.templates().len(), 2);
        for (arguments, expected) in [
            (json!({}), "missing field `message`"),
            (json!({"message": "hi", "mode": "x"}), "unknown field `mode`"),
            (json!({"message": "hi"}), "no model is loaded yet; try again in a moment"),
        ] {
            let arguments = arguments.as_object().cloned().unwrap();
            let refused = offers.prompt(RENDER_CHAT, arguments).await.unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
        assert!(offers.prompt("other", JsonObject::new()).await.is_err());
    }
}
