//! Tool lists in, names out.

use prometheus::Registry;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::{GatewayConfig, McpClientConfig, StdioConfig, ToolForwardingConfig, TransportConfig};

/// Upstreams as `(name, namespace)`.
fn catalog(upstreams: &[(&str, &str)], naming: NamingConfig, native: &[&str]) -> Catalog {
    let upstreams: Vec<UpstreamConfig> = upstreams
        .iter()
        .map(|(name, namespace)| UpstreamConfig {
            namespace: Namespace::new(namespace),
            ..UpstreamConfig::new(
                name,
                TransportConfig::Stdio(StdioConfig {
                    command: "unused".into(),
                    args: Vec::new(),
                    env: std::collections::BTreeMap::new(),
                    cwd: None,
                }),
            )
        })
        .collect();
    let native = native.iter().map(|name| (*name).to_owned()).collect();
    Catalog::new(&upstreams, naming, native, GatewayMetrics::register(&Registry::new()))
}

fn tool(name: &str) -> Tool {
    serde_json::from_value(json!({ "name": name, "inputSchema": { "type": "object" } })).unwrap()
}

fn tools(names: &[&str]) -> Vec<Tool> {
    names.iter().map(|name| tool(name)).collect()
}

fn listed(catalog: &Catalog) -> String {
    let snapshot = catalog.snapshot();
    snapshot.check_invariants();
    snapshot.listed().iter().map(|tool| &*tool.listed.name).collect::<Vec<_>>().join(" ")
}

/// What a call of `name` reaches, or why not.
fn reached(catalog: &Catalog, name: &str) -> String {
    match catalog.snapshot().resolve(name, |_| true) {
        Ok(tool) => format!("{} of {}", tool.tool.name, catalog.owners[tool.upstream].id),
        Err(error) => error.to_string(),
    }
}

fn flat() -> NamingConfig {
    NamingConfig { strategy: NamespaceStrategy::Flat, ..NamingConfig::default() }
}

/// As the configuration gives them, of servers `files`, `web` and `a`, and one without a namespace.
fn aliased(strategy: &str, aliases: &serde_json::Value) -> NamingConfig {
    let servers = ["files", "web", "a"].map(|name| json!({ "name": name, "command": "x" }));
    let servers = json!({ "servers": [servers[0], servers[1], servers[2], { "name": "plain", "namespace": "", "command": "x" }] });
    let forwarding = json!({ "namespace_strategy": strategy, "aliases": aliases });
    let sections = (McpClientConfig::from_value(servers), ToolForwardingConfig::from_value(forwarding));
    GatewayConfig::from_sections(Some(sections.0.unwrap()), Some(sections.1.unwrap())).unwrap().naming
}

const ALIASED: [(&str, &str); 3] = [("files", "files"), ("web", "web"), ("plain", "")];

impl CatalogSnapshot {
    /// Every listed tool is reached by each of its names, listed names are unique, and nothing else is reachable.
    fn check_invariants(&self) {
        let mut seen = HashSet::new();
        for tool in &self.listed {
            assert!(seen.insert(&tool.listed.name), "{} is listed twice", tool.listed.name);
            for name in tool.names() {
                assert!(Arc::ptr_eq(&self.by_name[name], tool), "{name}");
            }
        }
        for tool in self.by_name.values().chain(self.by_own_name.values().flatten()) {
            assert!(self.listed.iter().any(|listed| Arc::ptr_eq(listed, tool)), "{}", tool.qualified);
        }
        let places: Vec<_> = self.listed.iter().map(|tool| (tool.upstream, tool.tool.name.clone())).collect();
        assert!(places.is_sorted(), "{places:?}");
    }
}

#[test]
fn tools_are_listed_in_configuration_order_whoever_connects_first() {
    let catalog = catalog(&[("web", "web"), ("files", "files")], NamingConfig::default(), &[]);
    assert!(catalog.replace(1, tools(&["write", "read"])));
    assert!(catalog.replace(0, tools(&["search"])));
    assert_eq!(listed(&catalog), "web::search files::read files::write");
}

#[test]
fn a_part_is_replaced_alone_and_only_if_it_changed() {
    let catalog = catalog(&[("a", "a"), ("b", "b")], NamingConfig::default(), &[]);
    catalog.replace(0, tools(&["x", "y"]));
    catalog.replace(1, tools(&["z"]));
    let changes = catalog.changes();
    assert!(!catalog.replace(0, tools(&["y", "x"])));
    assert!(!changes.has_changed().unwrap());
    let mut described = tools(&["x", "y"]);
    described[0].description = Some("now with a description".into());
    assert!(catalog.replace(0, described));
    assert!(changes.has_changed().unwrap());
    assert!(catalog.replace(1, Vec::new()));
    assert_eq!(listed(&catalog), "a::x a::y");
}

#[test]
fn a_tool_answers_to_every_spelling_of_its_name() {
    let catalog = catalog(&[("files", "files"), ("db", "db"), ("plain", "")], NamingConfig::default(), &[]);
    catalog.replace(0, tools(&["read", "delete"]));
    catalog.replace(1, tools(&["delete", "größe/lesen"]));
    catalog.replace(2, tools(&["echo"]));
    for name in ["files::read", "files__read", "read"] {
        assert_eq!(reached(&catalog, name), "read of files");
    }
    for name in ["echo", "plain::echo"] {
        let expected = if name == "echo" {
            "echo of plain"
        } else {
            "unknown tool `plain::echo`; `tools/list` names those there are"
        };
        assert_eq!(reached(&catalog, name), expected);
    }
    let safe =
        catalog.snapshot().listed().iter().find(|tool| tool.qualified == "db::größe/lesen").unwrap().safe.clone();
    assert_eq!(reached(&catalog, &safe), "größe/lesen of db");
    assert_eq!(
        reached(&catalog, "delete"),
        "`delete` is the name of several tools; call one of files::delete, db::delete"
    );
}

#[test]
fn a_bare_name_means_the_one_tool_that_the_caller_may_see() {
    let catalog = catalog(&[("files", "files"), ("db", "db")], NamingConfig::default(), &[]);
    catalog.replace(0, tools(&["delete", "read"]));
    catalog.replace(1, tools(&["delete"]));
    let snapshot = catalog.snapshot();
    let only_db = |tool: &CatalogTool| tool.upstream == 1;
    assert_eq!(snapshot.resolve("delete", only_db).ok().unwrap().qualified, "db::delete");
    // The policy then says why not.
    assert_eq!(snapshot.resolve("read", only_db).ok().unwrap().qualified, "files::read");
    assert_eq!(snapshot.resolve("delete", |_| false).err().unwrap().kind(), "unknown_tool");
}

#[test]
fn flat_names_belong_to_the_server_configured_first() {
    let catalog = catalog(&[("a", "a"), ("b", "b")], flat(), &["generate"]);
    catalog.replace(1, tools(&["search", "own", "generate"]));
    assert_eq!(listed(&catalog), "own search");
    assert_eq!(reached(&catalog, "search"), "search of b");
    catalog.replace(0, tools(&["search"]));
    assert_eq!(listed(&catalog), "search own");
    assert_eq!(reached(&catalog, "search"), "search of a");
    assert_eq!(reached(&catalog, "b::own"), "own of b");
    assert_eq!(catalog.snapshot().resolve("b::search", |_| true).err().unwrap().kind(), "unknown_tool");
    // What was taken over comes back.
    catalog.replace(0, Vec::new());
    assert_eq!(reached(&catalog, "search"), "search of b");
}

#[test]
fn names_for_narrow_clients_are_listed_where_configured() {
    let naming = NamingConfig { separator: Separator::Underscores, ..NamingConfig::default() };
    let catalog = catalog(&[("files", "files")], naming, &[]);
    catalog.replace(0, tools(&["read"]));
    assert_eq!(listed(&catalog), "files__read");
    assert_eq!(reached(&catalog, "files::read"), "read of files");
}

#[test]
fn a_tool_is_listed_under_its_alias_and_answers_to_every_other_spelling_too() {
    let aliases = json!({ "files::read_file": "read", "web::größe/lesen": "size", "echo": "say" });
    for (strategy, expected) in [
        ("custom", "read files::write_file web::find size say"),
        ("server_prefix", "read files::write_file web::find size say"),
        ("flat", "read write_file find size say"),
    ] {
        let catalog = catalog(&ALIASED, aliased(strategy, &aliases), &[]);
        catalog.replace(0, tools(&["read_file", "write_file"]));
        catalog.replace(1, tools(&["find", "größe/lesen"]));
        catalog.replace(2, tools(&["echo"]));
        assert_eq!(listed(&catalog), expected);
        for name in ["read", "files::read_file", "files__read_file", "read_file"] {
            assert_eq!(reached(&catalog, name), "read_file of files", "{name}");
        }
        let safe = safe_name("web", "größe/lesen");
        for name in ["size", "web::größe/lesen", &safe] {
            assert_eq!(reached(&catalog, name), "größe/lesen of web", "{name}");
        }
        assert_eq!(
            (reached(&catalog, "say"), reached(&catalog, "echo")),
            ("echo of plain".into(), "echo of plain".into())
        );
        let found: Vec<_> = catalog.snapshot().search("say").map(|tool| tool.qualified.clone()).collect();
        assert_eq!(found, ["echo"]);
    }
}

#[test]
fn an_alias_belongs_to_its_tool_alone_even_while_that_is_not_there() {
    let catalog = catalog(&ALIASED, aliased("flat", &json!({ "web::find": "search" })), &["generate"]);
    let search = || catalog.snapshot().resolve("search", |_| true).map(|tool| tool.qualified.clone());
    catalog.replace(0, tools(&["search", "read"]));
    assert_eq!(listed(&catalog), "read");
    assert_eq!(search().unwrap_err().kind(), "unknown_tool");
    catalog.replace(1, tools(&["find"]));
    assert_eq!(listed(&catalog), "read search");
    assert_eq!(search().unwrap(), "web::find");
    let (_, refused) = catalog.assemble(catalog.snapshot().parts.clone());
    let told: Vec<_> =
        refused.iter().map(|refused| format!("{} of {}: {}", refused.name, refused.owner, refused.reason)).collect();
    assert_eq!(told, ["search of files: the name `search` is the configured alias of `web::find`"]);
}

#[test]
fn an_alias_does_not_take_a_native_name() {
    let catalog = catalog(&ALIASED, aliased("custom", &json!({ "web::find": "generate" })), &["generate"]);
    catalog.replace(1, tools(&["find", "open"]));
    assert_eq!(listed(&catalog), "web::open");
}

#[test]
fn native_names_are_never_taken_over() {
    let catalog = catalog(&[("plain", "")], NamingConfig::default(), &["generate", "chat"]);
    catalog.replace(0, tools(&["generate", "mistralrs::chat", "mistralrs__chat", "other"]));
    assert_eq!(listed(&catalog), "other");
}

#[test]
fn tools_that_no_catalog_can_hold_are_left_out() {
    let catalog = catalog(&[("a", "a")], NamingConfig::default(), &[]);
    let long = "x".repeat(300);
    catalog.replace(0, tools(&["ok", "", "line\nbreak", &long, "ok"]));
    assert_eq!(listed(&catalog), "a::ok");
    let many: Vec<Tool> = (0..3000).map(|n| tool(&format!("t{n:04}"))).collect();
    catalog.replace(0, many);
    assert_eq!(catalog.snapshot().listed().len(), MAX_TOOLS_PER_UPSTREAM);
}

#[test]
fn everything_but_the_name_stays_as_the_upstream_gave_it() {
    let catalog = catalog(&[("a", "a")], NamingConfig::default(), &[]);
    let given = r##"{"name":"t","title":"T","description":"d","inputSchema":{"type":"object","required":["z"],"properties":{"z":{"$ref":"#/$defs/D"},"a":{"maximum":1.0}},"$defs":{"D":{}}},"outputSchema":{"type":"object"},"annotations":{"readOnlyHint":true},"_meta":{"k":[1]}}"##;
    catalog.replace(0, vec![serde_json::from_str(given).unwrap()]);
    let listed = serde_json::to_string(&catalog.snapshot().listed()[0].listed).unwrap();
    assert_eq!(listed, given.replacen("\"t\"", "\"a::t\"", 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_sequence_of_lists_leaves_a_sound_catalog(
        strategy in prop::sample::select(vec!["server_prefix", "flat", "custom"]),
        lists in prop::collection::vec((0..4_usize, prop::collection::vec("[ab_]{0,3}|a__b|a::b|mistralrs::n|n", 0..6)), 1..12),
    ) {
        // One is another tool's own name, the other looks like a safe name.
        let aliases = if strategy == "custom" { json!({ "a::a": "b", "b": "a__b" }) } else { json!({}) };
        let naming = aliased(strategy, &aliases);
        let catalog = catalog(&[("a", "a"), ("a__b", "a__b"), ("c", ""), ("d", "")], naming, &["n"]);
        for (place, names) in lists {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            catalog.replace(place, tools(&names));
            catalog.snapshot().check_invariants();
        }
    }
}
