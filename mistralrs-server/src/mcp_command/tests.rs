//! Texts in, texts out; then the file itself.

use std::fs;
use std::path::Path;

use super::*;
use crate::config::{Environment, Sources};

/// `name -- command args`, or `name url`.
fn add(words: &str) -> ServerChange {
    let (name, rest) = words.split_once(' ').unwrap();
    let mut server = NewServer { name: name.to_owned(), ..NewServer::default() };
    match rest.strip_prefix("-- ") {
        Some(command) => server.command = command.split(' ').map(str::to_owned).collect(),
        None => server.url = Some(rest.to_owned()),
    }
    ServerChange::Add(server)
}

fn remove(name: &str) -> ServerChange {
    ServerChange::Remove(name.to_owned())
}

fn sources(path: &Path) -> Sources {
    let flags = serde_json::json!({});
    match path.file_name().unwrap().to_str().unwrap() {
        "mistralrs.toml" | "mistralrs.json" => Sources { config: Some(path.to_owned()), mcp_config: None, flags },
        _ => Sources { config: None, mcp_config: Some(path.to_owned()), flags },
    }
}

/// The file after `change`, or why it stays as it is.
fn edited(file: &str, text: &str, change: &ServerChange) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(file);
    if !text.is_empty() {
        fs::write(&path, text).unwrap();
    }
    let edit = PendingEdit::new(change, sources(&path), Environment::default());
    let outcome = edit.and_then(PendingEdit::commit);
    let left = fs::read_dir(directory.path()).unwrap().count();
    assert!(left <= 1, "something else is left in the directory");
    match outcome {
        Ok(_) => fs::read_to_string(&path).unwrap(),
        Err(error) => {
            assert_eq!(fs::read_to_string(&path).unwrap_or_default(), text, "it failed and changed the file");
            error.to_string().replace(&directory.path().display().to_string(), "")
        }
    }
}

const COMMENTED: &str = "\
# All of it.

[server]
port = 7 # odd

# The files of the house.
[[mcp_client.servers]]
name = \"files\"
command = \"npx\" # of node
env = { KEY = \"$KEY\" }

[http_mcp]
port = 9
";

#[test]
fn toml_keeps_its_comments_and_its_order() {
    insta::assert_snapshot!(edited("mistralrs.toml", COMMENTED, &add("db https://h/mcp")), @r#"
    # All of it.

    [server]
    port = 7 # odd

    # The files of the house.
    [[mcp_client.servers]]
    name = "files"
    command = "npx" # of node
    env = { KEY = "$KEY" }

    [[mcp_client.servers]]
    name = "db"
    url = "https://h/mcp"

    [http_mcp]
    port = 9
    "#);
    insta::assert_snapshot!(edited("mistralrs.toml", COMMENTED, &remove("files")), @r#"
    # All of it.

    [server]
    port = 7 # odd

    [http_mcp]
    port = 9
    "#);
}

#[test]
fn what_stands_over_several_servers_outlives_the_first() {
    let text = "# Mine.\n\n# The first.\n[[servers]]\nname = 'a'\ncommand = 'x'\n\n# The second.\n[[servers]]\nname = 'b'\ncommand = 'y'\n";
    insta::assert_snapshot!(edited("servers.toml", text, &remove("a")), @r"
    # Mine.

    # The second.
    [[servers]]
    name = 'b'
    command = 'y'
    ");
}

#[test]
fn a_server_is_written_in_the_words_of_its_file() {
    let server = NewServer {
        name: "a".to_owned(),
        namespace: Some("n".to_owned()),
        command: vec!["npx".to_owned(), "-y".to_owned()],
        env: vec!["KEY=$KEY".parse().unwrap(), "HOME".parse().unwrap()],
        ..NewServer::default()
    };
    let as_child = ServerChange::Add(server);
    insta::assert_snapshot!(edited("new.toml", "", &as_child), @r#"
    [[servers]]
    name = "a"
    namespace = "n"
    command = "npx"
    args = ["-y"]
    env = { KEY = "$KEY", HOME = "$HOME" }
    "#);
    let mistral_rs = r#"{ "servers": [ { "name": "z", "source": { "type": "Process", "command": "x" } } ], "tool_timeout_secs": 9 }"#;
    insta::assert_snapshot!(edited("mistral.json", mistral_rs, &as_child), @r#"
    {
      "servers": [
        {
          "name": "z",
          "source": {
            "type": "Process",
            "command": "x"
          }
        },
        {
          "name": "a",
          "tool_prefix": "n",
          "source": {
            "type": "Process",
            "command": "npx",
            "args": [
              "-y"
            ],
            "env": {
              "KEY": "$KEY",
              "HOME": "$HOME"
            }
          }
        }
      ],
      "tool_timeout_secs": 9
    }
    "#);
}

#[test]
fn a_url_is_written_with_its_transport_and_headers() {
    let server = NewServer {
        name: "a".to_owned(),
        url: Some("http://h/sse".to_owned()),
        transport: Some("sse".to_owned()),
        headers: vec!["Authorization: Bearer $TOKEN".parse().unwrap()],
        ..NewServer::default()
    };
    let at_url = ServerChange::Add(server);
    let desktop = "{\n    \"mcpServers\": {\n        \"z\": {\"command\": \"x\", \"description\": \"ä\"}\n    }\n}\n";
    insta::assert_snapshot!(edited("desktop.json", desktop, &at_url), @r#"
    {
        "mcpServers": {
            "z": {
                "command": "x",
                "description": "ä"
            },
            "a": {
                "type": "sse",
                "url": "http://h/sse",
                "headers": {
                    "Authorization": "Bearer $TOKEN"
                }
            }
        }
    }
    "#);
    let inline = "servers = [\n    { name = 'z', command = 'x' }, # old\n]\n";
    insta::assert_snapshot!(edited("inline.toml", inline, &add("a -- y z")), @r#"
    servers = [
        { name = 'z', command = 'x' },
        { name = "a", command = "y", args = ["z"] }, # old
    ]
    "#);
}

#[test]
fn what_was_added_can_be_removed_and_leaves_the_text_as_it_was() {
    for (file, text) in [
        ("mistralrs.toml", COMMENTED),
        ("servers.toml", "[[servers]]\nname = 'z'\ncommand = 'x'\n"),
        ("vscode.json", "{\n\t\"servers\": {\n\t\t\"z\": {\n\t\t\t\"command\": \"x\"\n\t\t}\n\t}\n}"),
        (
            "mistralrs.json",
            "{\n  \"http_mcp\": {\n    \"port\": 1\n  },\n  \"mcp_client\": {\n    \"servers\": []\n  }\n}\n",
        ),
    ] {
        let added = edited(file, text, &add("new -- y"));
        assert!(added != text && added.contains("new"), "{file}: {added}");
        assert_eq!(edited(file, &added, &remove("new")), text, "{file}");
    }
}

#[test]
fn a_change_that_would_be_wrong_changes_nothing_and_says_why() {
    let servers = "[[servers]]\nname = 'files'\ncommand = 'x'\n";
    for (file, text, change, expected) in [
        (
            "s.toml",
            servers,
            add("files -- y"),
            "/s.toml: there is a server `files` already; `mcp remove files` removes it",
        ),
        ("s.toml", servers, remove("fils"), "/s.toml: there is no server `fils`; did you mean `files`?"),
        ("s.toml", servers, remove("xyz"), "/s.toml: there is no server `xyz` (there are files)"),
        ("new.toml", "", remove("a"), "/new.toml: No such file or directory"),
        ("s.toml", servers, add("a b -- y"), "would be wrong: /s.toml:7: `mcp_client.servers[1]"),
        ("s.toml", servers, add("mistralrs -- y"), "`mistralrs` is the namespace of the native tools"),
        ("s.toml", servers, add("a ftp://h"), "`ftp://h` must begin with http:// or https:// and a host"),
        ("s.toml", "[[servers]]\nnam = 'x'\n", add("a -- y"), "unknown key `servers[0].nam`; did you mean `name`?"),
        ("s.toml", "servers = 5\n", add("a -- y"), "`servers` holds no servers"),
        ("s.toml", "servers = [\n", add("a -- y"), "/s.toml: TOML parse error"),
        ("s.json", "{ // servers\n}", add("a -- y"), "/s.json: key must be a string at line 1 column 3"),
        ("s.yaml", "servers: []\n", add("a -- y"), "YAML is read, but not edited"),
        ("s.json", r#"{"servers": [{"id": "z", "command": "x"}]}"#, add("a -- y"), "the aggregator's format is read"),
        ("s.ini", "x", add("a -- y"), "/s.ini: the name must end in .toml or .json"),
    ] {
        let said = edited(file, text, &change);
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    let namespaced = NewServer { namespace: Some("n".to_owned()), ..NewServer::default() };
    let said = edited("s.json", r#"{"mcpServers": {}}"#, &ServerChange::Add(namespaced));
    assert!(said.contains("--namespace: a file of this format cannot say it"), "{said}");
}

#[test]
fn secrets_and_variables_that_are_not_set_are_pointed_at() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("servers.toml");
    let server = NewServer {
        name: "a".to_owned(),
        url: Some("http://h".to_owned()),
        headers: ["X-Api-Key=s3cret", "Authorization=Bearer $TOKEN", "X-Team=blue", "Cookie=${KNOWN}"]
            .map(|pair| pair.parse().unwrap())
            .to_vec(),
        ..NewServer::default()
    };
    let environment = [("KNOWN".to_owned(), "x".to_owned())].into_iter().collect();
    let edit = PendingEdit::new(&ServerChange::Add(server), sources(&path), environment).unwrap();
    insta::assert_snapshot!(edit.warnings.join("\n"), @r"
    --header X-Api-Key: the value is written to the file as it is; `--header 'X-Api-Key=$X_API_KEY'` reads it from the environment instead
    `$TOKEN` is not set here; the server does not start without it
    ");
    assert!(!path.exists(), "nothing is written before the commit");
    edit.commit().unwrap();
    assert!(path.exists());
}

#[cfg(unix)]
#[test]
fn permissions_and_links_stay_and_a_new_file_is_the_owners_alone() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let directory = tempfile::tempdir().unwrap();
    let (path, link) = (directory.path().join("servers.toml"), directory.path().join("link.toml"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let add_to = |path: &Path, words| {
        PendingEdit::new(&add(words), sources(path), Environment::default()).unwrap().commit().unwrap();
    };
    add_to(&path, "a -- x");
    assert_eq!(mode(&path), 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    symlink(&path, &link).unwrap();
    add_to(&link, "b -- y");
    assert!(link.is_symlink() && fs::read_to_string(&path).unwrap().contains("\"b\""));
    assert_eq!(mode(&path), 0o640);
}

#[test]
fn a_file_that_somebody_else_changed_meanwhile_is_left_to_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("servers.toml");
    let edit = PendingEdit::new(&add("a -- x"), sources(&path), Environment::default()).unwrap();
    fs::write(&path, "# theirs\n").unwrap();
    let refused = edit.commit().unwrap_err().to_string();
    assert!(refused.contains("it was changed meanwhile; try again"), "{refused}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "# theirs\n");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}
