//! All routes as one OpenAPI document.

use bytes::Bytes;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::operation::{Generators, Tag};
use super::routes::{Access, DescribedRoute, Routes};

/// Where schemas that have a name stand.
const SCHEMAS: &str = "/components/schemas";

const DESCRIPTION: &str = "LLM inference with OpenAI's and Anthropic's APIs. Errors of `/v1/messages` and below have Anthropic's \
    shape, all others OpenAI's. A field that this server does not know is ignored, as OpenAI's server does; one that it \
    knows and cannot honour is refused.";

/// The document, rendered once.
#[derive(Debug, Clone)]
pub struct Document(Bytes);

/// Whether this server has keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    Configured,
    None,
}

impl Document {
    /// Describes `routes`; `has_keys`: whether callers of those that need a key must have one.
    pub fn new(routes: &[&Routes], num_keys: usize) -> Self {
        let keys = if num_keys > 0 { Keys::Configured } else { Keys::None };
        let routes = routes.iter().flat_map(|routes| routes.described());
        Self(document(routes, keys).to_string().into())
    }

    /// As JSON.
    pub fn json(&self) -> Bytes {
        self.0.clone()
    }
}

fn document<'a>(routes: impl Iterator<Item = &'a DescribedRoute>, keys: Keys) -> Value {
    let settings = || SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = SCHEMAS.into());
    let mut generators = Generators {
        read: settings().for_deserialize().into_generator(),
        written: settings().for_serialize().into_generator(),
    };
    let mut paths = Map::new();
    let mut bodies = Map::new();
    for route in routes {
        let mut operation = route.operation.to_value(&mut generators);
        name_body(&mut operation, route.operation.id(), &mut bodies);
        operation["security"] = security(route.access, keys);
        let path = paths.entry(documented_path(&route.path)).or_insert_with(|| json!({}));
        path[route.method] = operation;
    }
    let mut schemas = generators.read.take_definitions(false);
    schemas.extend(generators.written.take_definitions(false));
    schemas.extend(bodies);
    let tags = Tag::ALL.map(|tag| json!({ "name": tag.name() })).to_vec();
    let mut document = json!({
        "openapi": "3.2.0",
        "info": {
            "title": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "servers": [{ "url": "/" }],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "apiKey": { "type": "apiKey", "in": "header", "name": "x-api-key" },
            },
        },
    });
    remove_null_defaults(&mut document);
    document
}

/// Puts the schema of a body among the named ones, as OpenAI names it: `CreateCompletionRequest`.
fn name_body(operation: &mut Value, id: &str, bodies: &mut Map<String, Value>) {
    let Some(schema) = operation.pointer_mut("/requestBody/content/application~1json/schema") else { return };
    let name = format!("{}{}Request", id[..1].to_ascii_uppercase(), &id[1..]);
    let reference = json!({ "$ref": format!("#{SCHEMAS}/{name}") });
    bodies.insert(name, std::mem::replace(schema, reference));
}

fn security(access: Access, keys: Keys) -> Value {
    match (access, keys) {
        (Access::Open, _) => json!([]),
        (Access::Key, Keys::Configured) => json!([{ "bearer": [] }, { "apiKey": [] }]),
        // Clients may send one all the same, as many must.
        (Access::Key, Keys::None) => json!([{}, { "bearer": [] }, { "apiKey": [] }]),
    }
}

/// The document knows no parts of a path with slashes in them.
pub(super) fn documented_path(path: &str) -> String {
    path.replace("{*", "{")
}

/// What is absent is null: to say so at every field of a request would only be noise.
fn remove_null_defaults(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            if entries.get("default").is_some_and(Value::is_null) {
                entries.remove("default");
            }
            entries.values_mut().for_each(remove_null_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_null_defaults),
        _ => {}
    }
}
