//! Resources and prompts that this process answers itself. The server implements [`LocalOffers`] over the model and its
//! own state; this crate sees neither.

use async_trait::async_trait;
use rmcp::model::{
    ArgumentInfo, GetPromptResult, JsonObject, Prompt, ReadResourceResult, Reference, Resource, ResourceTemplate,
};
use tokio::sync::watch;

use crate::gateway::UpstreamStatus;

/// Every native resource's URI begins with it, and no upstream's is listed under one that does.
pub const NATIVE_SCHEME: &str = "mistralrs://";

/// What the gateway knows of itself, as far as whoever reads it may know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayStatus {
    /// In configuration order; only those whose namespace the reader may see.
    pub upstreams: Vec<UpstreamStatus>,
    /// Clients that have shaken hands and are told when a list changes.
    pub num_sessions: usize,
    /// Resources that clients listen to.
    pub num_subscriptions: usize,
}

/// Why a native resource or prompt could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LocalOfferError {
    /// There is none of this name.
    #[error("there is none of this name")]
    Unknown,
    /// The arguments do not fit, or fit nothing that is loaded: JSON-RPC -32602.
    #[error("{0}")]
    InvalidArguments(String),
}

/// The resources and prompts of this process.
#[async_trait]
pub trait LocalOffers: Send + Sync + 'static {
    /// What can be read now. URIs begin with [`NATIVE_SCHEME`].
    fn resources(&self) -> Vec<Resource>;

    /// What can be read under a URI that names something.
    fn templates(&self) -> Vec<ResourceTemplate>;

    /// The prompts; each also answers to `mistralrs::<name>` and `mistralrs__<name>`.
    fn prompts(&self) -> Vec<Prompt>;

    /// What the resource of `uri`, or of a template, is: the access policy knows it as `mistralrs::<kind>`.
    fn kind_of(&self, uri: &str) -> Option<&'static str>;

    /// Reads one; never waits.
    ///
    /// # Errors
    /// [`LocalOfferError::Unknown`].
    fn read(&self, uri: &str, gateway: &GatewayStatus) -> Result<ReadResourceResult, LocalOfferError>;

    /// Fills one in.
    ///
    /// # Errors
    /// [`LocalOfferError`].
    async fn prompt(&self, name: &str, arguments: JsonObject) -> Result<GetPromptResult, LocalOfferError>;

    /// Values that the argument may have, of those that begin with what is written of it.
    fn complete(&self, of: &Reference, argument: &ArgumentInfo) -> Vec<String>;

    /// Changes when [`Self::resources`] does.
    fn changes(&self) -> watch::Receiver<()>;
}
