//! Lists of what an upstream offers, over all their pages.

use std::time::Duration;

use rmcp::model::{
    ClientRequest, ListPromptsRequest, ListResourceTemplatesRequest, ListResourcesRequest, ListToolsRequest,
    PaginatedRequestParams, Prompt, Resource, ResourceTemplate, ServerResult, Tool,
};
use rmcp::service::PeerRequestOptions;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::connection::Connection;
use crate::error::GatewayError;
use crate::mcp_server::offers::Offer;

/// A server that pages further gives the same page again and again.
const MAX_LIST_PAGES: usize = 100;
/// For one page.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Some entries of a list, and where the rest is.
struct Page<T> {
    entries: Vec<T>,
    next_cursor: Option<String>,
}

/// A kind of list: how a page is asked for, and how it is read.
struct Kind<T> {
    /// The key of its entries.
    key: &'static str,
    request: fn(PaginatedRequestParams) -> ClientRequest,
    read: fn(ServerResult) -> Result<Page<T>, Box<ServerResult>>,
}

/// Declares a [`Kind`]: rmcp has a request and a result type of its own for each list.
macro_rules! kind {
    ($name:ident: $entry:ty, $key:literal, $request:ident, $result:ident.$field:ident) => {
        const $name: Kind<$entry> = Kind {
            key: $key,
            request: |params| ClientRequest::$request($request::with_param(params)),
            read: |answer| match answer {
                ServerResult::$result(page) => Ok(Page { entries: page.$field, next_cursor: page.next_cursor }),
                other => Err(Box::new(other)),
            },
        };
    };
}

kind!(TOOLS: Tool, "tools", ListToolsRequest, ListToolsResult.tools);
kind!(PROMPTS: Prompt, "prompts", ListPromptsRequest, ListPromptsResult.prompts);
kind!(RESOURCES: Resource, "resources", ListResourcesRequest, ListResourcesResult.resources);
kind!(
    TEMPLATES: ResourceTemplate,
    "resourceTemplates",
    ListResourceTemplatesRequest,
    ListResourceTemplatesResult.resource_templates
);

impl Connection {
    /// Lists all tools; none from a server without the capability.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn list_tools(&self) -> Result<Vec<Tool>, GatewayError> {
        if self.server().is_some_and(|server| server.capabilities.tools.is_none()) {
            return Ok(Vec::new());
        }
        self.list(&TOOLS).await
    }

    /// Lists what else there is. A list that cannot be had is empty: the tools are still good.
    pub async fn list_offer(&self) -> Offer {
        let Some(server) = self.server() else { return Offer::default() };
        let mut offer = Offer::default();
        if server.capabilities.prompts.is_some() {
            offer.prompts = self.or_none(self.list(&PROMPTS).await);
        }
        if server.capabilities.resources.is_some() {
            offer.resources = self.or_none(self.list(&RESOURCES).await);
            offer.templates = self.or_none(self.list(&TEMPLATES).await);
        }
        offer
    }

    fn or_none<T>(&self, listed: Result<Vec<T>, GatewayError>) -> Vec<T> {
        listed.unwrap_or_else(|error| {
            tracing::debug!(upstream = %self.upstream(), %error, "a list was refused");
            Vec::new()
        })
    }

    async fn list<T: DeserializeOwned>(&self, kind: &Kind<T>) -> Result<Vec<T>, GatewayError> {
        let (mut entries, mut cursor) = (Vec::new(), None);
        for _ in 0..MAX_LIST_PAGES {
            let page = self.list_page(kind, cursor.clone()).await?;
            entries.extend(page.entries);
            if page.next_cursor.is_none() || page.next_cursor == cursor {
                return Ok(entries);
            }
            cursor = page.next_cursor;
        }
        let list = kind.key;
        tracing::warn!(upstream = %self.upstream(), list, MAX_LIST_PAGES, "a list has too many pages; the rest is left out");
        Ok(entries)
    }

    /// Not through rmcp's own lists, which answer from a cache where the upstream does not answer.
    async fn list_page<T: DeserializeOwned>(
        &self,
        kind: &Kind<T>,
        cursor: Option<String>,
    ) -> Result<Page<T>, GatewayError> {
        let request = (kind.request)(PaginatedRequestParams::default().with_cursor(cursor));
        let options = PeerRequestOptions::with_timeout(LIST_TIMEOUT);
        let answer = match self.peer().send_request_with_option(request, options).await {
            Ok(pending) => pending.await_response().await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(ServerResult::CustomResult(page)) => self.salvage(kind, page.0),
            Ok(answer) => (kind.read)(answer).map_err(|other| self.unexpected(&other)),
            Err(error) => Err(self.explain(error, true)),
        }
    }

    /// One entry that breaks the schema makes the whole page unreadable as such; the others are still good.
    fn salvage<T: DeserializeOwned>(&self, kind: &Kind<T>, mut page: Value) -> Result<Page<T>, GatewayError> {
        let Some(Value::Array(raw)) = page.get_mut(kind.key).map(Value::take) else {
            return Err(GatewayError::UnexpectedAnswer { upstream: self.upstream().clone(), answer: "no list" });
        };
        let mut entries = Vec::new();
        for entry in raw {
            let name = entry.get("name").and_then(Value::as_str).unwrap_or("?").to_owned();
            match serde_json::from_value(entry) {
                Ok(entry) => entries.push(entry),
                Err(error) => {
                    tracing::warn!(upstream = %self.upstream(), list = kind.key, name, %error, "left out: unreadable");
                }
            }
        }
        let next_cursor = page.get("nextCursor").and_then(Value::as_str).map(str::to_owned);
        Ok(Page { entries, next_cursor })
    }
}
