//! The house rules that neither compiler nor clippy knows: crate edges, layout, sizes, names, documents.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

const PREFIX: &str = "mistralrs-";

/// Who may depend on whom, for normal, build and dev dependencies alike. No crate names one to its left.
const ALLOWED_EDGES: [(&str, &[&str]); 7] = [
    ("server", &["core", "mcp", "telemetry"]),
    ("core", &["paged-attn", "quant", "telemetry"]),
    ("paged-attn", &["telemetry"]),
    ("quant", &["telemetry"]),
    ("mcp", &["telemetry"]),
    ("telemetry", &[]),
    ("benches", &["core", "mcp", "paged-attn", "quant", "telemetry"]),
];

/// What a crate must not even reach through others: (crate, the package, why).
const STRANGERS: [(&str, &str, &str); 9] = [
    ("mcp", "candle-core", "the gateway builds and runs without a tensor library"),
    ("mcp", "tokenizers", "the gateway builds and runs without a model"),
    ("mcp", "axum", "only the server listens"),
    ("core", "axum", "the engine knows no HTTP"),
    ("core", "rmcp", "the engine knows no MCP"),
    ("core", "reqwest", "the engine knows no network"),
    ("paged-attn", "tokio", "KV memory knows no tasks"),
    ("quant", "candle-core", "kernels know no tensors"),
    ("telemetry", "tokio", "a leaf measures and locks, no more"),
];

/// Integration targets that documents and CI name; each costs a link of the whole server, so there are no others.
const TEST_TARGETS: [&str; 7] = [
    "integration_end_to_end",
    "integration_http_mcp",
    "integration_tool_forwarding",
    "security_auth",
    "security_input_validation",
    "security_rate_limit",
    "tidy",
];

const MAX_FILE_LINES: usize = 800;
/// What fits on one screen.
const MAX_LOOP_LINES: usize = 60;
const VAGUE_NAMES: [&str; 6] = ["common", "helper", "helpers", "misc", "util", "utils"];

#[test]
fn crates_depend_only_to_the_right() {
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        let name = short(&package.name);
        let allowed = ALLOWED_EDGES.iter().find(|(from, _)| *from == name);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("`{name}` is not in STYLE's crate graph"));
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            let to = short(&dependency.name);
            assert!(allowed.contains(&to), "{name} → {to} ({:?}) is a forbidden edge", dependency.kind);
        }
    }
}

#[test]
fn strangers_are_not_reached_through_others() {
    let metadata = metadata();
    let names: BTreeMap<&PackageId, &str> =
        metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
    for (from, stranger, reason) in STRANGERS {
        let root = names.iter().find(|(_, name)| **name == format!("{PREFIX}{from}")).map(|(id, _)| *id);
        let reached = reachable(&metadata, root.unwrap_or_else(|| panic!("no crate {from}")));
        assert!(!reached.iter().any(|id| names[id] == stranger), "{from} reaches {stranger}: {reason}");
    }
}

#[test]
fn every_dependency_comes_from_the_registry() {
    for package in &metadata().packages {
        let is_ours = package.source.is_none() && package.manifest_path.starts_with(root().to_str().unwrap());
        let is_registry = package.source.as_ref().is_some_and(|source| source.repr.starts_with("registry+"));
        assert!(is_ours || is_registry, "{} comes from {:?}", package.name, package.source);
    }
}

#[test]
fn the_workspace_has_the_documented_layout() {
    let members: BTreeSet<String> =
        metadata().workspace_packages().iter().map(|package| short(&package.name).to_owned()).collect();
    let documented = ["benches", "core", "mcp", "paged-attn", "quant", "server", "telemetry"].map(str::to_owned);
    let unknown: Vec<_> = members.iter().filter(|name| !documented.contains(name)).collect();
    assert!(unknown.is_empty(), "crates that STYLE's layout does not name: {unknown:?}");
    assert!(documented.iter().all(|name| members.contains(name)), "a documented crate is missing: {members:?}");
    for path in [
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
        "clippy.toml",
        "deny.toml",
        "docs/README.md",
        "docs/adr",
        "docs/benchmarks.md",
        "docs/guides",
        "docs/metrics.md",
        "grafana",
        "justfile",
        "load-tests",
        "mistralrs-core/src/scheduler/mod.rs",
        "mistralrs-mcp/src/mcp_server/tool_forwarder.rs",
        "mistralrs-paged-attn/src/block_manager/mod.rs",
        "mistralrs-server/src/app.rs",
    ] {
        assert!(root().join(path).exists(), "{path} is missing");
    }
}

#[test]
fn test_binaries_are_the_documented_ones() {
    let metadata = metadata();
    let package = metadata.workspace_packages().into_iter().find(|package| short(&package.name) == "server");
    let targets = &package.expect("the server is a member").targets;
    let found: BTreeSet<&str> =
        targets.iter().filter(|target| target.is_test()).map(|target| target.name.as_str()).collect();
    assert_eq!(found, BTreeSet::from(TEST_TARGETS), "tests of a module live beside its code");
}

#[test]
fn no_file_is_longer_than_the_wall() {
    for (path, text) in rust_files() {
        let lines = text.lines().count();
        assert!(lines <= MAX_FILE_LINES, "{} has {lines} lines; {MAX_FILE_LINES} is the wall", path.display());
    }
}

#[test]
fn no_module_has_a_vague_name() {
    for (path, _) in rust_files() {
        for part in path.strip_prefix(root()).unwrap().components() {
            let stem = Path::new(part.as_os_str()).file_stem().unwrap().to_string_lossy().into_owned();
            assert!(!VAGUE_NAMES.contains(&stem.as_str()), "{}: `{stem}` says nothing", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    // A `tests.rs` is a part of the file beside it, moved out for its length.
    for (path, text) in rust_files().into_iter().filter(|(path, _)| !path.ends_with("tests.rs")) {
        assert!(text.starts_with("//!"), "{} does not open with a `//!` line", path.display());
    }
}

#[test]
fn the_environment_is_read_in_the_configuration_only() {
    for (path, text) in rust_files() {
        let relative = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let is_config = relative.starts_with("mistralrs-server/src/config");
        let is_test_setup = relative.contains("/tests/") || relative.ends_with("/tests.rs");
        let reads = ["env::var(", "env::var_os(", "env::vars("].iter().any(|call| text.contains(call));
        assert!(!reads || is_config || is_test_setup, "{relative} reads the environment");
    }
}

#[test]
fn both_loops_fit_on_one_screen() {
    for (file, function) in [
        ("mistralrs-core/src/engine.rs", "fn step("),
        ("mistralrs-mcp/src/mcp_server/tool_forwarder.rs", "fn forward("),
    ] {
        let text = read(&root().join(file));
        let lines: Vec<&str> = text.lines().collect();
        let start = lines.iter().position(|line| line.contains(function));
        let start = start.unwrap_or_else(|| panic!("no `{function}` in {file}"));
        let indent = &lines[start][..lines[start].len() - lines[start].trim_start().len()];
        let end = lines[start..].iter().position(|line| *line == format!("{indent}}}")).expect("a function ends");
        assert!(end < MAX_LOOP_LINES, "`{function}` of {file} has {} lines", end + 1);
    }
}

#[test]
fn unfinished_work_carries_an_issue() {
    for (path, text) in rust_files().into_iter().filter(|(path, _)| !path.ends_with("tidy.rs")) {
        for (index, line) in text.lines().enumerate() {
            let is_open = line.contains("FIXME") || (line.contains("TODO") && !line.contains("TODO(#"));
            assert!(!is_open, "{}:{}: {line}", path.display(), index + 1);
        }
    }
}

#[test]
fn scripts_can_be_run() {
    let scripts = fs::read_dir(root().join("scripts")).expect("scripts/ is there").map(|entry| entry.unwrap().path());
    let ci = root().join(".ci/run");
    for path in scripts.chain([ci]).filter(|path| path.is_file()) {
        let text = read(&path);
        let is_program = text.starts_with("#!");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert!(!is_program || mode & 0o111 == 0o111, "{} has no run bit", path.display());
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for path in files_with_extension("md") {
        let text = read(&path);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let is_external = target.contains("://") || target.starts_with('#') || target.starts_with("mailto:");
            let file = target.split('#').next().unwrap_or_default();
            let linked = path.parent().unwrap().join(file);
            assert!(is_external || linked.exists(), "{}: no {target}", path.display());
        }
    }
}

#[test]
fn architectures_table_names_files_that_exist() {
    let text = read(&root().join("ARCHITECTURE.md"));
    let rows = text.lines().filter(|line| line.starts_with("| `") && line.matches('|').count() == 3);
    let mut num_rows = 0;
    for row in rows {
        let here = row.split('|').nth(2).unwrap();
        for path in here.split('`').skip(1).step_by(2).filter(|path| path.contains('/')) {
            assert!(root().join(path).exists(), "{row}: no {path}");
            num_rows += 1;
        }
    }
    assert!(num_rows >= 3, "the table from documented paths to paths here is gone");
}

#[test]
fn the_changelog_has_a_place_for_the_next_change() {
    let text = read(&root().join("CHANGELOG.md"));
    assert!(text.contains("\n## [Unreleased]\n"), "no Unreleased section");
}

#[test]
fn decisions_are_numbered_without_gaps() {
    let mut numbers: Vec<usize> = fs::read_dir(root().join("docs/adr"))
        .expect("docs/adr is there")
        .filter_map(|entry| entry.unwrap().file_name().to_string_lossy().get(..4)?.parse().ok())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>(), "docs/adr/NNNN-title.md");
}

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("the crate is a folder of the workspace").to_owned()
}

fn short(package: &str) -> &str {
    package.strip_prefix(PREFIX).unwrap_or(package)
}

fn metadata() -> Metadata {
    // Without the platform's filter cargo would want to download what only other platforms need.
    let rustc = Command::new("rustc").arg("-vV").output().expect("rustc runs where cargo does");
    let version = String::from_utf8(rustc.stdout).expect("rustc prints UTF-8");
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
    let options = ["--locked", "--filter-platform", host].map(str::to_owned).to_vec();
    let mut command = MetadataCommand::new();
    command.manifest_path(root().join("Cargo.toml")).other_options(options);
    command.exec().expect("cargo metadata works in a checkout")
}

/// All packages that `from` needs when it is built, not when it is tested.
fn reachable<'a>(metadata: &'a Metadata, from: &'a PackageId) -> BTreeSet<&'a PackageId> {
    let nodes = &metadata.resolve.as_ref().expect("metadata was asked to resolve").nodes;
    let edges: BTreeMap<&PackageId, Vec<&PackageId>> = nodes
        .iter()
        .map(|node| {
            let needed = node
                .deps
                .iter()
                .filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind != DependencyKind::Development));
            (&node.id, needed.map(|dependency| &dependency.pkg).collect())
        })
        .collect();
    let mut reached = BTreeSet::from([from]);
    let mut open = vec![from];
    while let Some(next) = open.pop() {
        for dependency in &edges[next] {
            if reached.insert(dependency) {
                open.push(dependency);
            }
        }
    }
    reached
}

fn rust_files() -> Vec<(PathBuf, String)> {
    let files: Vec<_> = files_with_extension("rs").into_iter().map(|path| (path.clone(), read(&path))).collect();
    assert!(files.len() > 30, "only {} Rust files found", files.len());
    files
}

/// The checkout's own files: build outputs, downloads and hidden folders are left out.
fn files_with_extension(extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("a folder of the checkout") {
            let path = entry.expect("a folder can be listed").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
            let is_foreign = name.starts_with('.') || ["target", "models", "node_modules"].contains(&name.as_str());
            if path.is_dir() && !is_foreign {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
