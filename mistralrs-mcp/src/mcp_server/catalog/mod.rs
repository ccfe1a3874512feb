//! All upstream tools by name: an immutable snapshot behind one atomic pointer.
//!
//! Order: upstreams as configured, each one's tools by name. It depends on nothing else (not on who connected first),
//! because a prompt with the list in it is cached KV on the model's side.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rmcp::model::Tool;
use tokio::sync::watch;

use super::namespace::{is_acceptable, native_name, qualified_name, safe_name};
use super::search::{Document, ToolIndex};
use super::security::ToolIdentity;
use crate::config::{Namespace, NamespaceStrategy, NamingConfig, Separator, UpstreamConfig, UpstreamId};
use crate::error::GatewayError;
use crate::metrics::{GatewayMetrics, ToolKind, ToolMetrics};

/// One upstream that offers more is misconfigured, and no model reads them all.
const MAX_TOOLS_PER_UPSTREAM: usize = 2048;

/// The catalog. Each upstream owns its part; replacing one leaves the others as they are, and an upstream that went
/// away keeps its last good part.
pub(crate) struct Catalog {
    snapshot: ArcSwap<CatalogSnapshot>,
    owners: Vec<Owner>,
    naming: NamingConfig,
    /// Names of native tools, which no upstream takes over.
    native: HashSet<String>,
    metrics: GatewayMetrics,
    changed: watch::Sender<()>,
}

/// What the catalog holds at one moment.
#[derive(Default)]
pub(crate) struct CatalogSnapshot {
    /// By upstream, in configuration order: all that it offers, also what is refused below.
    parts: Vec<Part>,
    /// In listing order.
    listed: Vec<Arc<CatalogTool>>,
    /// Listed, qualified and safe names of the listed tools.
    by_name: HashMap<String, Arc<CatalogTool>>,
    /// Upstreams' own names, which several may have.
    by_own_name: HashMap<String, Vec<Arc<CatalogTool>>>,
    /// Of the listed tools; made by the first search.
    index: OnceLock<ToolIndex>,
}

type Part = Arc<[Arc<CatalogTool>]>;

/// One upstream tool.
pub(crate) struct CatalogTool {
    /// Which upstream, by place in the configuration.
    pub upstream: usize,
    /// As the upstream gave it; schemas are never touched.
    pub tool: Tool,
    /// The same under its listed name.
    pub listed: Tool,
    /// `namespace::tool`: in policies, metrics and messages, whatever the listed name is.
    pub qualified: String,
    /// In `[A-Za-z0-9_-]{1,64}`.
    pub safe: String,
    /// The name that the configuration gives it.
    alias: Option<String>,
    /// Where its calls are counted.
    pub metrics: ToolMetrics,
    namespace: Namespace,
}

/// An upstream as the catalog knows it.
struct Owner {
    id: UpstreamId,
    namespace: Namespace,
}

/// A tool that is left out, and why; the catalog goes on without it.
struct RefusedTool {
    name: String,
    owner: UpstreamId,
    reason: RefusalReason,
}

enum RefusalReason {
    Unacceptable,
    Repeated,
    TooMany,
    Native,
    Aliased { name: String, tool: String },
    Taken { name: String, by: UpstreamId },
}

impl Catalog {
    /// An empty one. Names in `native` are never given to an upstream's tool.
    pub fn new(
        upstreams: &[UpstreamConfig],
        naming: NamingConfig,
        native: HashSet<String>,
        metrics: GatewayMetrics,
    ) -> Self {
        let owner =
            |upstream: &UpstreamConfig| Owner { id: upstream.id.clone(), namespace: upstream.namespace.clone() };
        let owners: Vec<Owner> = upstreams.iter().map(owner).collect();
        let parts = vec![Part::default(); owners.len()];
        let empty = CatalogSnapshot { parts, ..CatalogSnapshot::default() };
        let changed = watch::Sender::new(());
        Self { snapshot: ArcSwap::from_pointee(empty), owners, naming, native, metrics, changed }
    }

    /// A receiver that changes when a part does.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What there is now.
    pub fn snapshot(&self) -> Arc<CatalogSnapshot> {
        self.snapshot.load_full()
    }

    /// Gives the upstream at `place` these tools, and returns whether that changed anything.
    pub fn replace(&self, place: usize, tools: Vec<Tool>) -> bool {
        let (tools, refused) = self.admit(place, tools);
        if self.snapshot().parts[place].iter().map(|known| &known.tool).eq(&tools) {
            return false;
        }
        let part: Part = tools.into_iter().map(|tool| Arc::new(self.describe(place, tool))).collect();
        self.warn_of_idle_aliases(place, &part);
        let mut collisions = Vec::new();
        // Another upstream may swap its own part meanwhile; ours then goes into the newer snapshot.
        self.snapshot.rcu(|current| {
            let mut parts = current.parts.clone();
            parts[place] = Arc::clone(&part);
            let (snapshot, refused) = self.assemble(parts);
            collisions = refused;
            snapshot
        });
        for refused in refused.iter().chain(&collisions) {
            tracing::warn!(upstream = %refused.owner, tool = refused.name, "tool left out: {}", refused.reason);
        }
        self.changed.send_replace(());
        true
    }

    /// A misspelled alias would otherwise show only by the name that is missing.
    fn warn_of_idle_aliases(&self, place: usize, part: &Part) {
        let owner = &self.owners[place];
        for tool in self.naming.aliases.tools_of(owner.namespace.as_str()) {
            if !part.iter().any(|known| known.tool.name == tool) {
                tracing::warn!(upstream = %owner.id, tool, "`tool_forwarding.aliases` names a tool that it does not list");
            }
        }
    }

    /// Sorts the tools by name and leaves out what no catalog can hold.
    fn admit(&self, place: usize, mut tools: Vec<Tool>) -> (Vec<Tool>, Vec<RefusedTool>) {
        // The sort is stable: of two equal names, the one that the upstream lists first stays.
        tools.sort_by(|left, right| left.name.cmp(&right.name));
        let mut admitted: Vec<Tool> = Vec::with_capacity(tools.len());
        let mut refused = Vec::new();
        for tool in tools {
            let reason = if !is_acceptable(&tool.name) {
                RefusalReason::Unacceptable
            } else if admitted.last().is_some_and(|last| last.name == tool.name) {
                RefusalReason::Repeated
            } else if admitted.len() == MAX_TOOLS_PER_UPSTREAM {
                RefusalReason::TooMany
            } else {
                admitted.push(tool);
                continue;
            };
            refused.push(RefusedTool { name: tool.name.into_owned(), owner: self.owners[place].id.clone(), reason });
        }
        (admitted, refused)
    }

    fn describe(&self, place: usize, tool: Tool) -> CatalogTool {
        let namespace = self.owners[place].namespace.clone();
        let qualified = qualified_name(namespace.as_str(), &tool.name);
        let safe = safe_name(namespace.as_str(), &tool.name);
        let mut listed = tool.clone();
        let alias = self.naming.aliases.of(&qualified).map(str::to_owned);
        listed.name = match (&alias, self.naming.strategy, self.naming.separator) {
            (Some(alias), ..) => alias.clone().into(),
            (None, NamespaceStrategy::Flat, Separator::Colons) => tool.name.clone(),
            (None, NamespaceStrategy::Flat, Separator::Underscores) => safe_name("", &tool.name).into(),
            (None, _, Separator::Colons) => qualified.clone().into(),
            (None, _, Separator::Underscores) => safe.clone().into(),
        };
        let metrics = self.metrics.tool(&qualified, ToolKind::Forwarded);
        CatalogTool { upstream: place, tool, listed, qualified, safe, alias, metrics, namespace }
    }

    /// Whose name it is is decided in listing order: the first keeps it, whoever connected first.
    fn assemble(&self, parts: Vec<Part>) -> (CatalogSnapshot, Vec<RefusedTool>) {
        let mut snapshot = CatalogSnapshot::default();
        let mut refused = Vec::new();
        for tool in parts.iter().flat_map(|part| part.iter()) {
            if let Some(reason) = self.reason_to_refuse(tool, &snapshot.by_name) {
                let owner = self.owners[tool.upstream].id.clone();
                refused.push(RefusedTool { name: tool.tool.name.to_string(), owner, reason });
                continue;
            }
            for name in tool.names() {
                snapshot.by_name.insert(name.to_owned(), Arc::clone(tool));
            }
            snapshot.by_own_name.entry(tool.tool.name.to_string()).or_default().push(Arc::clone(tool));
            snapshot.listed.push(Arc::clone(tool));
        }
        snapshot.parts = parts;
        (snapshot, refused)
    }

    fn reason_to_refuse(&self, tool: &CatalogTool, taken: &HashMap<String, Arc<CatalogTool>>) -> Option<RefusalReason> {
        tool.names().into_iter().find_map(|name| {
            if self.native.contains(native_name(name)) {
                return Some(RefusalReason::Native);
            }
            // Reserved even while its tool is not there: a name that changes hands would be called for the wrong one.
            if let Some(owner) = self.naming.aliases.owner(name).filter(|owner| *owner != tool.qualified) {
                return Some(RefusalReason::Aliased { name: name.to_owned(), tool: owner.to_owned() });
            }
            let other = taken.get(name)?;
            Some(RefusalReason::Taken { name: name.to_owned(), by: self.owners[other.upstream].id.clone() })
        })
    }
}

impl CatalogSnapshot {
    /// All tools, in listing order.
    pub fn listed(&self) -> &[Arc<CatalogTool>] {
        &self.listed
    }

    /// The tool that `name` means: a qualified name, a safe name, or an upstream's own name where only one of the
    /// tools that pass `is_visible` has it.
    ///
    /// # Errors
    /// [`GatewayError::UnknownTool`], [`GatewayError::AmbiguousTool`].
    pub fn resolve(
        &self,
        name: &str,
        is_visible: impl Fn(&CatalogTool) -> bool,
    ) -> Result<Arc<CatalogTool>, GatewayError> {
        if let Some(tool) = self.by_name.get(name) {
            return Ok(Arc::clone(tool));
        }
        let own = self.by_own_name.get(name).map_or(&[][..], Vec::as_slice);
        let visible: Vec<_> = own.iter().filter(|tool| is_visible(tool)).collect();
        match (visible.as_slice(), own) {
            ([tool], _) => Ok(Arc::clone(tool)),
            // The policy tells the caller why it may not be called.
            ([], [tool]) => Ok(Arc::clone(tool)),
            ([], _) => Err(GatewayError::UnknownTool(name.to_owned())),
            (several, _) => Err(GatewayError::AmbiguousTool {
                name: name.to_owned(),
                candidates: several.iter().map(|tool| tool.qualified.clone()).collect(),
            }),
        }
    }
}

impl CatalogSnapshot {
    /// Listed tools that have any word of `query`, best first.
    pub fn search(&self, query: &str) -> impl Iterator<Item = &Arc<CatalogTool>> {
        let index = self.index.get_or_init(|| ToolIndex::new(self.listed.iter().map(|tool| tool.document())));
        index.search(query).into_iter().map(|place| &self.listed[place])
    }
}

impl CatalogTool {
    /// What it is found by.
    fn document(&self) -> Document<'_> {
        let arguments = self.tool.input_schema.get("properties").and_then(serde_json::Value::as_object);
        Document {
            name: &self.qualified,
            alias: self.alias.as_deref(),
            description: self.tool.description.as_deref().unwrap_or_default(),
            arguments: arguments.into_iter().flat_map(|properties| properties.keys().map(String::as_str)).collect(),
        }
    }

    /// As the access policy sees it.
    pub fn identity(&self) -> ToolIdentity<'_> {
        ToolIdentity { namespace: self.namespace.as_str(), tool: &self.tool.name }
    }

    /// Whether a second run changes nothing that the first did not: by what the upstream says of the tool.
    pub fn is_repeatable(&self) -> bool {
        self.tool
            .annotations
            .as_ref()
            .is_some_and(|hints| hints.read_only_hint == Some(true) || hints.idempotent_hint == Some(true))
    }

    /// Every name that is this tool's alone; some may be equal.
    fn names(&self) -> [&str; 3] {
        [&self.listed.name, &self.qualified, &self.safe]
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unacceptable => f.write_str("its name is empty, too long, or holds control characters"),
            Self::Repeated => f.write_str("the upstream lists this name twice"),
            Self::TooMany => write!(f, "the upstream lists more than {MAX_TOOLS_PER_UPSTREAM} tools"),
            Self::Native => f.write_str("a native tool has this name"),
            Self::Aliased { name, tool } => write!(f, "the name `{name}` is the configured alias of `{tool}`"),
            Self::Taken { name, by } => write!(f, "the name `{name}` is taken by upstream `{by}`"),
        }
    }
}

#[cfg(test)]
mod tests;
