//! A route table in which every route says what it does.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{self, MethodRouter};

use super::operation::Operation;
use crate::app::AppState;

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Holders of a key, where there are keys.
    Key,
}

/// Routes with their operations.
pub struct Routes {
    access: Access,
    router: Router<AppState>,
    described: Vec<DescribedRoute>,
}

/// One route as the document has it.
pub(super) struct DescribedRoute {
    pub access: Access,
    /// In lower case, as keys of the document are.
    pub method: &'static str,
    /// As axum has it.
    pub path: String,
    pub operation: Operation,
}

impl Routes {
    /// No routes yet.
    pub fn new(access: Access) -> Self {
        Self { access, router: Router::new(), described: Vec::new() }
    }

    /// `GET path`.
    pub fn get<T: 'static>(self, path: &str, handler: impl Handler<T, AppState>, operation: Operation) -> Self {
        self.add("get", path, routing::get(handler), operation)
    }

    /// `POST path`.
    pub fn post<T: 'static>(self, path: &str, handler: impl Handler<T, AppState>, operation: Operation) -> Self {
        self.add("post", path, routing::post(handler), operation)
    }

    /// `DELETE path`.
    pub fn delete<T: 'static>(self, path: &str, handler: impl Handler<T, AppState>, operation: Operation) -> Self {
        self.add("delete", path, routing::delete(handler), operation)
    }

    fn add(mut self, method: &'static str, path: &str, route: MethodRouter<AppState>, operation: Operation) -> Self {
        let operation = if self.access == Access::Key { operation.refuses(&[401]) } else { operation };
        self.router = self.router.route(path, route);
        self.described.push(DescribedRoute { access: self.access, method, path: path.to_owned(), operation });
        self
    }

    /// Whether a route has exactly this path.
    pub fn has_path(&self, path: &str) -> bool {
        self.described.iter().any(|route| route.path == path)
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.described.len()
    }

    /// What the routes say of themselves.
    pub(super) fn described(&self) -> impl Iterator<Item = &DescribedRoute> {
        self.described.iter()
    }

    /// The routes to serve.
    pub fn into_router(self) -> Router<AppState> {
        self.router
    }
}
