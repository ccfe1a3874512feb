//! The commands of `mcp` that serve nothing: `list`, `search`, `test` and `logs` look at the servers, `add` and `remove` edit the file
//! that names them.

mod edit;
mod json_file;
mod look;
mod new_server;
mod replacement;
mod shape;
#[cfg(test)]
mod tests;
mod toml_file;

pub use edit::{EditError, PendingEdit, ServerChange};
pub use look::{Report, UnknownServer, run, select};
pub use new_server::{NewServer, Pair};
