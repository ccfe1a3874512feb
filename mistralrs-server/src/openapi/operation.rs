//! What one route says of itself: what it takes, what it answers, how it refuses.

use std::collections::BTreeSet;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::anthropic;
use crate::error::ErrorBody;
use crate::extract::RequestBody;

/// Makes a schema, or refers to one that the generator keeps.
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What belongs together on the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// OpenAI's API.
    OpenAi,
    /// Anthropic's API; its errors have Anthropic's shape.
    Anthropic,
    /// vLLM's tokenizer routes.
    Tokenizer,
    /// What operators ask.
    Operation,
}

/// A route as the document tells of it.
pub struct Operation {
    id: &'static str,
    tag: Tag,
    summary: &'static str,
    parameters: Vec<Parameters>,
    body: Option<Body>,
    answers: Vec<Answer>,
    refusals: BTreeSet<u16>,
    next: &'static [&'static str],
}

enum Parameters {
    Path {
        name: &'static str,
        description: &'static str,
    },
    /// One for each field of the query's type.
    Query(SchemaOf),
}

struct Body {
    schema: SchemaOf,
    example: Value,
}

struct Answer {
    status: u16,
    media_type: &'static str,
    schema: Option<SchemaOf>,
    description: &'static str,
}

/// Schemas of what is read and of what is written: the same type may have fields that only one of them needs.
pub(super) struct Generators {
    pub read: SchemaGenerator,
    pub written: SchemaGenerator,
}

impl Tag {
    /// In the order of the page.
    pub const ALL: [Self; 4] = [Self::OpenAi, Self::Anthropic, Self::Tokenizer, Self::Operation];

    /// Its name on the page.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "OpenAI",
            Self::Anthropic => "Anthropic",
            Self::Tokenizer => "Tokenizer",
            Self::Operation => "Operation",
        }
    }
}

impl Operation {
    /// An operation without parameters, body or answers. Ids are unique: code generators make names of them.
    pub fn new(id: &'static str, tag: Tag, summary: &'static str) -> Self {
        Self {
            id,
            tag,
            summary,
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            refusals: BTreeSet::new(),
            next: &[],
        }
    }

    /// A part of the path.
    pub fn path_parameter(mut self, name: &'static str, description: &'static str) -> Self {
        self.parameters.push(Parameters::Path { name, description });
        self.refuses(&[400])
    }

    /// A query string, read as `T`.
    pub fn query<T: JsonSchema>(mut self) -> Self {
        self.parameters.push(Parameters::Query(T::json_schema));
        self.refuses(&[400])
    }

    /// A JSON body, and one that works.
    pub fn body<T: RequestBody>(mut self, example: Value) -> Self {
        self.body = Some(Body { schema: T::schema, example });
        self.refuses(&[400, 408, 413, 415])
    }

    /// JSON with status 200.
    pub fn answers<T: JsonSchema>(self) -> Self {
        self.answers_with::<T>(200, "The answer.")
    }

    /// JSON with `status`.
    pub fn answers_with<T: JsonSchema>(mut self, status: u16, description: &'static str) -> Self {
        let schema: SchemaOf = |generator| generator.subschema_for::<T>();
        self.answers.push(Answer { status, media_type: "application/json", schema: Some(schema), description });
        self
    }

    /// Server-sent events with status 200 where the body says `"stream": true`; the data of each is a `T`, but for what
    /// `description` says.
    pub fn streams<T: JsonSchema>(mut self, description: &'static str) -> Self {
        let schema: SchemaOf = |generator| generator.subschema_for::<T>();
        self.answers.push(Answer { status: 200, media_type: EVENT_STREAM, schema: Some(schema), description });
        self
    }

    /// Something else than JSON, with status 200.
    pub fn answers_text(mut self, media_type: &'static str) -> Self {
        self.answers.push(Answer { status: 200, media_type, schema: None, description: "The answer." });
        self
    }

    /// It asks a model that may not be loaded, or never will be.
    pub fn needs_model(self) -> Self {
        self.refuses(&[404, 503])
    }

    /// It waits for an answer, which may fail or be late.
    pub fn generates(self) -> Self {
        self.needs_model().refuses(&[500, 504])
    }

    /// What the path names may not be there.
    pub fn may_be_unknown(self) -> Self {
        self.refuses(&[404])
    }

    /// It is refused with these statuses too.
    pub fn refuses(mut self, statuses: &[u16]) -> Self {
        self.refusals.extend(statuses);
        self
    }

    /// Ids of the operations that take this one's `id`.
    pub fn leads_to(mut self, next: &'static [&'static str]) -> Self {
        self.next = next;
        self
    }

    /// Its id.
    pub(super) fn id(&self) -> &'static str {
        self.id
    }

    /// As the document has it.
    pub(super) fn to_value(&self, generators: &mut Generators) -> Value {
        let mut value = json!({
            "operationId": self.id,
            "tags": [self.tag.name()],
            "summary": self.summary,
        });
        let parameters: Vec<Value> =
            self.parameters.iter().flat_map(|parameters| parameters.to_values(&mut generators.read)).collect();
        if !parameters.is_empty() {
            value["parameters"] = parameters.into();
        }
        if let Some(Body { schema, example }) = &self.body {
            let schema = schema(&mut generators.read);
            let content = json!({ "application/json": { "schema": schema, "example": example } });
            value["requestBody"] = json!({ "required": true, "content": content });
        }
        value["responses"] = self.responses(&mut generators.written).into();
        value
    }

    fn responses(&self, written: &mut SchemaGenerator) -> Map<String, Value> {
        let mut responses = Map::new();
        for answer in &self.answers {
            let response = responses.entry(answer.status.to_string()).or_insert_with(
                || json!({ "description": "The answer.", "headers": headers(answer.status), "content": {} }),
            );
            if answer.media_type != EVENT_STREAM {
                response["description"] = answer.description.into();
            }
            response["content"][answer.media_type] = answer.content(self.tag, written);
        }
        if let Some(answer) = responses.get_mut("200").filter(|_| !self.next.is_empty()) {
            let link = |id: &&str| {
                ((*id).to_owned(), json!({ "operationId": id, "parameters": { "id": "$response.body#/id" } }))
            };
            answer["links"] = self.next.iter().map(link).collect::<Map<_, _>>().into();
        }
        for status in &self.refusals {
            // `/ready` answers 503 itself.
            responses.entry(status.to_string()).or_insert_with(|| self.refusal(*status, written));
        }
        responses
    }

    fn refusal(&self, status: u16, written: &mut SchemaGenerator) -> Value {
        let schema = match self.tag {
            Tag::Anthropic => written.subschema_for::<anthropic::ErrorBody<'_>>(),
            _ => written.subschema_for::<ErrorBody<'_>>(),
        };
        json!({
            "description": meaning(status),
            "headers": headers(status),
            "content": { "application/json": { "schema": schema } },
        })
    }
}

const EVENT_STREAM: &str = "text/event-stream";

impl Answer {
    fn content(&self, tag: Tag, written: &mut SchemaGenerator) -> Value {
        match self.schema {
            None => json!({ "schema": { "type": "string" } }),
            Some(schema) if self.media_type == EVENT_STREAM => {
                json!({ "itemSchema": event(tag, self.description, schema(written), written) })
            }
            Some(schema) => json!({ "schema": schema(written) }),
        }
    }
}

/// One event of a stream. OpenAI's APIs end in `[DONE]`, and in an error object before it if they cannot go on.
fn event(tag: Tag, description: &str, data: Schema, written: &mut SchemaGenerator) -> Value {
    let json_of = |schema: Value| json!({ "contentMediaType": "application/json", "contentSchema": schema });
    let data = match tag {
        Tag::Anthropic => json_of(data.to_value()),
        _ => json!({ "anyOf": [
            { "const": "[DONE]" },
            json_of(json!({ "anyOf": [data, written.subschema_for::<ErrorBody<'_>>()] })),
        ]}),
    };
    let data = json!({ "type": "string", "allOf": [data] });
    json!({
        "type": "object",
        "description": description,
        "properties": { "event": { "type": "string" }, "data": data },
        "required": ["data"],
    })
}

impl Parameters {
    fn to_values(&self, read: &mut SchemaGenerator) -> Vec<Value> {
        match self {
            Self::Path { name, description } => vec![json!({
                "name": name, "in": "path", "required": true, "description": description,
                "schema": { "type": "string" },
            })],
            Self::Query(schema) => {
                let schema = schema(read).to_value();
                let properties = schema["properties"].as_object().cloned().unwrap_or_default();
                properties.into_iter().map(|(name, schema)| query_parameter(&name, schema)).collect()
            }
        }
    }
}

/// A query has no null: a parameter is there or not.
fn query_parameter(name: &str, mut schema: Value) -> Value {
    if let Some(types) = schema["type"].as_array_mut() {
        types.retain(|r#type| r#type != "null");
        schema["type"] = types[0].clone();
    }
    let description = schema.as_object_mut().and_then(|schema| schema.remove("description")).unwrap_or_default();
    json!({ "name": name, "in": "query", "description": description, "schema": schema })
}

fn headers(status: u16) -> Value {
    let header = |description: &str, r#type: &str| json!({ "description": description, "schema": { "type": r#type } });
    let mut headers = json!({ "x-request-id": header("Names the request in the log.", "string") });
    match status {
        401 => headers["WWW-Authenticate"] = header("How to prove who one is.", "string"),
        503 => headers["Retry-After"] = header("Seconds after which trying again may help.", "integer"),
        _ => {}
    }
    headers
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "The request is wrong; the message names the field and says what would be right.",
        401 => "No key, or one that is not known.",
        404 => "There is no such thing: a model that is not loaded, or an id that is not kept.",
        408 => "The body did not arrive in time.",
        413 => "The body is larger than the server's limit.",
        415 => "The body is not JSON.",
        500 => "The server failed on this request.",
        503 => "Not now: the model is loading, the queue is full, or the server is about to end.",
        504 => "The answer was not complete in time.",
        _ => "Refused.",
    }
}

/// The schema of a body that is read as several types at once: the fields of all, but for those that `refused` names.
pub fn merged(parts: impl IntoIterator<Item = Schema>, refused: &[(&str, &str)]) -> Schema {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for part in parts {
        let mut part = part.to_value();
        if let Value::Object(fields) = part["properties"].take() {
            // The first part is the endpoint's own, and knows best.
            fields.into_iter().for_each(|(name, schema)| {
                properties.entry(name).or_insert(schema);
            });
        }
        if let Value::Array(names) = part["required"].take() {
            required.extend(names);
        }
    }
    properties.retain(|name, _| !refused.iter().any(|(refused, _)| refused == name));
    let mut schema =
        Map::from_iter([("type".to_owned(), "object".into()), ("properties".to_owned(), properties.into())]);
    if !required.is_empty() {
        schema.insert("required".to_owned(), required.into());
    }
    schema.into()
}
