//! Tool names: qualified ones for people and MCP clients, safe ones for clients that take `[A-Za-z0-9_-]{1,64}`.

/// The namespace of this process's own tools; no upstream may have it.
pub const NATIVE_NAMESPACE: &str = "mistralrs";
/// What model APIs and many MCP clients allow.
pub const MAX_SAFE_LENGTH: usize = 64;
/// Longer names are refused: the specification's limit is 128, and a few servers are beyond it.
const MAX_TOOL_NAME_LENGTH: usize = 256;
/// Hexadecimal digits of the hash at the end of a safe name that had to be changed: 48 bits.
const HASH_LENGTH: usize = 12;

/// `namespace::tool`, or the tool's own name in the empty namespace.
pub fn qualified_name(namespace: &str, tool: &str) -> String {
    join(namespace, "::", tool)
}

/// The same tool in `[A-Za-z0-9_-]{1,64}`: `namespace__tool` where that is allowed and could be no other tool's, else
/// as much of it as fits with a hash of both behind. Two different tools never share one, up to a
/// collision of the hash, which the catalog refuses.
pub fn safe_name(namespace: &str, tool: &str) -> String {
    let plain = join(namespace, "__", tool);
    if is_safe_name(&plain) && is_reversible(namespace, &plain) {
        return plain;
    }
    // Not of the qualified name: `a` with `b` has the one of the empty namespace with `a::b`.
    let hash = blake3::hash(format!("{namespace}\0{tool}").as_bytes()).to_hex();
    let readable = plain.chars().map(|c| if is_safe(c) { c } else { '_' });
    let mut safe: String = readable.take(MAX_SAFE_LENGTH - HASH_LENGTH - 1).collect();
    safe.push('_');
    safe.push_str(&hash[..HASH_LENGTH]);
    safe
}

/// Whether every client takes `name` as it is.
pub fn is_safe_name(name: &str) -> bool {
    (1..=MAX_SAFE_LENGTH).contains(&name.len()) && name.chars().all(is_safe)
}

/// `name` without the native namespace in either spelling.
pub fn native_name(name: &str) -> &str {
    let rest = name.strip_prefix(NATIVE_NAMESPACE);
    rest.and_then(|rest| rest.strip_prefix("::").or_else(|| rest.strip_prefix("__"))).unwrap_or(name)
}

/// Whether a tool may have this name: anything a person can read, within the limit.
pub fn is_acceptable(tool: &str) -> bool {
    !tool.is_empty() && tool.len() <= MAX_TOOL_NAME_LENGTH && !tool.chars().any(char::is_control)
}

fn join(namespace: &str, separator: &str, tool: &str) -> String {
    if namespace.is_empty() { tool.to_owned() } else { format!("{namespace}{separator}{tool}") }
}

fn is_safe(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// Whether the first `__` of `plain` is the seam (so that `a` with `b__c` differs from `a__b` with `c`), and whether
/// it cannot be mistaken for a name with a hash.
fn is_reversible(namespace: &str, plain: &str) -> bool {
    let seam = plain.find("__");
    let is_seam_first = if namespace.is_empty() { seam.is_none() } else { seam == Some(namespace.len()) };
    let looks_hashed = plain.rsplit_once('_').is_some_and(|(_, end)| {
        end.len() == HASH_LENGTH && end.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    });
    is_seam_first && !looks_hashed
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_have_the_documented_spellings() {
        assert_eq!(qualified_name("filesystem", "read_file"), "filesystem::read_file");
        assert_eq!(safe_name("filesystem", "read_file"), "filesystem__read_file");
        assert_eq!(qualified_name("", "read_file"), "read_file");
        assert_eq!(safe_name("", "read-file"), "read-file");
    }

    #[test]
    fn names_that_do_not_fit_are_cut_with_a_hash() {
        let long = "x".repeat(80);
        let safe = safe_name("files", &long);
        assert_eq!(safe.len(), MAX_SAFE_LENGTH);
        assert!(safe.starts_with("files__xxx"), "{safe}");
        assert_ne!(safe, safe_name("files", &format!("{long}y")));
        assert!(safe_name("files", "größe/lesen").starts_with("files__gr__e_lesen_"));
    }

    #[test]
    fn names_that_would_meet_are_told_apart() {
        let pairs = [
            ("a", "b__c"),
            ("a__b", "c"),
            ("a", "_b"),
            ("a_", "b"),
            ("", "a__b"),
            ("a", "b"),
            ("a", "b.c"),
            ("a", "b/c"),
        ];
        let safe: std::collections::HashSet<String> =
            pairs.iter().map(|(namespace, tool)| safe_name(namespace, tool)).collect();
        assert_eq!(safe.len(), pairs.len(), "{safe:?}");
    }

    #[test]
    fn native_tools_answer_to_both_prefixes() {
        assert_eq!(native_name("mistralrs::generate"), "generate");
        assert_eq!(native_name("mistralrs__generate"), "generate");
        assert_eq!(native_name("generate"), "generate");
        assert_eq!(native_name("mistralrs_generate"), "mistralrs_generate");
        assert_eq!(native_name("filesystem::generate"), "filesystem::generate");
    }

    fn namespaces() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), "[ab_-]{1,6}", "[A-Za-z0-9_-]{1,32}"]
    }

    fn tools() -> impl Strategy<Value = String> {
        prop_oneof!["[ab_]{1,8}", "[A-Za-z0-9_./ -]{1,130}", "[a-c]{1,3}_[0-9a-f]{12}", "\\PC{1,100}"]
    }

    proptest! {
        #[test]
        fn safe_names_are_valid_unique_and_stable(names in prop::collection::vec((namespaces(), tools()), 1..60)) {
            let mut owner_of = HashMap::new();
            for (namespace, tool) in names {
                let safe = safe_name(&namespace, &tool);
                prop_assert!((1..=MAX_SAFE_LENGTH).contains(&safe.len()), "{}", safe);
                prop_assert!(safe.chars().all(is_safe), "{}", safe);
                prop_assert_eq!(&safe, &safe_name(&namespace, &tool));
                // The catalog's map takes a safe name back to its tool: it must be one tool's only.
                let qualified = (namespace, tool);
                let owner = owner_of.entry(safe).or_insert_with(|| qualified.clone());
                prop_assert_eq!(owner, &qualified);
            }
        }
    }
}
