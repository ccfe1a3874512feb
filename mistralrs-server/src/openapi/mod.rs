//! The document of the main port's API, made of what the routes say of themselves, and the page that shows it.
//!
//! `operation` is what one route says, `routes` a route table that cannot have a route without it, `document` all of them as
//! OpenAPI 3.2. Schemas come from the types that bodies are read as and answers are written from: a field is described
//! where it is declared. The document and the page (`page`) are open: they hold nothing that the source does not.

mod document;
mod operation;
mod page;
mod routes;
#[cfg(test)]
mod tests;

pub use document::Document;
pub use operation::{Operation, Tag, merged};
pub use page::{DOCUMENT_PATH, describe_document, describe_page, serve_document, serve_page};
pub use routes::{Access, Routes};
