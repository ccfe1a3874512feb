//! What upstreams offer beside tools: resources, templates of their URIs, and prompts, under the names that are listed here.
//!
//! A resource `file:///a` of upstream `docs` is listed as `mcp://docs/file:///a`: a URI that any parser keeps as it is,
//! that maps back by cutting its beginning off, and that a template stays a template in.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rmcp::model::{Prompt, Resource, ResourceTemplate};
use tokio::sync::watch;

use super::namespace::{is_acceptable, qualified_name, safe_name};
use crate::config::{Namespace, NamespaceStrategy, NamingConfig, Separator, UpstreamConfig};
use crate::error::GatewayError;

/// Of each kind; one upstream that offers more is misconfigured.
const MAX_ENTRIES_PER_UPSTREAM: usize = 4096;
/// Of listed URIs whose upstream has a namespace.
const SCHEME: &str = "mcp://";

/// What one upstream offers, as it said it.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Offer {
    pub prompts: Vec<Prompt>,
    pub resources: Vec<Resource>,
    pub templates: Vec<ResourceTemplate>,
}

/// What all offer. Each upstream owns its part; one that went away keeps its last good part.
pub(crate) struct Offers {
    parts: ArcSwap<Vec<Arc<Offer>>>,
    namespaces: Vec<Namespace>,
    naming: NamingConfig,
    prompts_changed: watch::Sender<()>,
    resources_changed: watch::Sender<()>,
}

/// Something of an upstream, under the upstream's own name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Owned {
    /// Which upstream, by place in the configuration.
    pub upstream: usize,
    /// Its name or URI there.
    pub name: String,
}

impl Offers {
    /// Empty ones.
    pub fn new(upstreams: &[UpstreamConfig], naming: NamingConfig) -> Self {
        let namespaces: Vec<Namespace> = upstreams.iter().map(|upstream| upstream.namespace.clone()).collect();
        let parts = ArcSwap::from_pointee(vec![Arc::default(); namespaces.len()]);
        let (prompts_changed, resources_changed) = (watch::Sender::new(()), watch::Sender::new(()));
        Self { parts, namespaces, naming, prompts_changed, resources_changed }
    }

    /// Receivers that change when a part does: of prompts, and of resources or templates.
    pub fn changes(&self) -> (watch::Receiver<()>, watch::Receiver<()>) {
        (self.prompts_changed.subscribe(), self.resources_changed.subscribe())
    }

    /// Gives the upstream at `place` this part.
    pub fn replace(&self, place: usize, mut offer: Offer) {
        admit(&mut offer.prompts, |prompt| &prompt.name);
        admit(&mut offer.resources, |resource| &resource.uri);
        admit(&mut offer.templates, |template| &template.uri_template);
        let known = Arc::clone(&self.parts.load()[place]);
        if *known == offer {
            return;
        }
        let part = Arc::new(offer);
        // Another upstream may swap its own part meanwhile; ours then goes into the newer ones.
        self.parts.rcu(|parts| {
            let mut parts = Vec::clone(parts);
            parts[place] = Arc::clone(&part);
            parts
        });
        if known.prompts != part.prompts {
            self.prompts_changed.send_replace(());
        }
        if (&known.resources, &known.templates) != (&part.resources, &part.templates) {
            self.resources_changed.send_replace(());
        }
    }

    /// Prompts of the namespaces that pass, in configuration order. Of two with one name the first keeps it.
    pub fn prompts(&self, is_visible: impl Fn(&str) -> bool) -> Vec<Prompt> {
        self.listed(
            is_visible,
            |part| &part.prompts,
            |place, prompt| {
                prompt.name = self.listed_name(place, &prompt.name);
                prompt.name.clone()
            },
        )
    }

    /// Resources of the namespaces that pass.
    pub fn resources(&self, is_visible: impl Fn(&str) -> bool) -> Vec<Resource> {
        self.listed(
            is_visible,
            |part| &part.resources,
            |place, resource| {
                resource.uri = self.listed_uri(place, &resource.uri);
                resource.uri.clone()
            },
        )
    }

    /// Templates of the namespaces that pass.
    pub fn templates(&self, is_visible: impl Fn(&str) -> bool) -> Vec<ResourceTemplate> {
        self.listed(
            is_visible,
            |part| &part.templates,
            |place, template| {
                template.uri_template = self.listed_uri(place, &template.uri_template);
                template.uri_template.clone()
            },
        )
    }

    /// The prompt that `name` means: a listed, qualified or safe name, or the upstream's own where only one has it.
    ///
    /// # Errors
    /// [`GatewayError::UnknownPrompt`].
    pub fn resolve_prompt(&self, name: &str, is_visible: impl Fn(&str) -> bool) -> Result<Owned, GatewayError> {
        let mut by_own_name = Vec::new();
        for (place, part) in self.visible(is_visible) {
            let namespace = self.namespaces[place].as_str();
            for prompt in &part.prompts {
                let owned = || Owned { upstream: place, name: prompt.name.clone() };
                if qualified_name(namespace, &prompt.name) == name || safe_name(namespace, &prompt.name) == name {
                    return Ok(owned());
                }
                if prompt.name == name {
                    by_own_name.push(owned());
                }
            }
        }
        // Listed flat, a name that several have is the first one's.
        let is_flat = self.naming.strategy == NamespaceStrategy::Flat;
        match by_own_name.len() {
            0 => Err(GatewayError::UnknownPrompt(name.to_owned())),
            num if num == 1 || is_flat => Ok(by_own_name.swap_remove(0)),
            _ => Err(GatewayError::UnknownPrompt(name.to_owned())),
        }
    }

    /// The resource that `uri` means: a listed URI, or an upstream's own. Tools put their own URIs into results, which
    /// are passed on untouched, so those are found too: by the lists, or as the only upstream's with resources.
    ///
    /// # Errors
    /// [`GatewayError::UnknownResource`].
    pub fn resolve_uri(&self, uri: &str, is_visible: impl Fn(&str) -> bool) -> Result<Owned, GatewayError> {
        let parts: Vec<_> = self.visible(is_visible).collect();
        let of = |place: usize, uri: &str| Owned { upstream: place, name: uri.to_owned() };
        for &(place, _) in &parts {
            if let Some(own) = self.own_uri(place, uri) {
                return Ok(of(place, own));
            }
        }
        let lists = |part: &Offer| {
            part.resources.iter().any(|resource| resource.uri == uri)
                || part.templates.iter().any(|template| may_match(&template.uri_template, uri))
        };
        let has_any = |part: &Offer| !part.resources.is_empty() || !part.templates.is_empty();
        let listing: Vec<usize> = parts.iter().filter(|(_, part)| lists(part)).map(|(place, _)| *place).collect();
        let offering: Vec<usize> = parts.iter().filter(|(_, part)| has_any(part)).map(|(place, _)| *place).collect();
        match (listing.as_slice(), offering.as_slice()) {
            ([place, ..], _) | ([], [place]) => Ok(of(*place, uri)),
            _ => Err(GatewayError::UnknownResource(uri.to_owned())),
        }
    }

    /// What `entries` picks of each part, under the names that `rename` gives and returns.
    fn listed<T: Clone>(
        &self,
        is_visible: impl Fn(&str) -> bool,
        entries: fn(&Offer) -> &Vec<T>,
        rename: impl Fn(usize, &mut T) -> String,
    ) -> Vec<T> {
        let mut taken = HashSet::new();
        let mut listed = Vec::new();
        for (place, part) in self.visible(is_visible) {
            for entry in entries(&part) {
                let mut entry = entry.clone();
                if taken.insert(rename(place, &mut entry)) {
                    listed.push(entry);
                }
            }
        }
        listed
    }

    fn visible(&self, is_visible: impl Fn(&str) -> bool) -> impl Iterator<Item = (usize, Arc<Offer>)> {
        let parts = Vec::clone(&self.parts.load());
        let visible: Vec<bool> = self.namespaces.iter().map(|namespace| is_visible(namespace.as_str())).collect();
        parts.into_iter().enumerate().filter(move |(place, _)| visible[*place])
    }

    fn listed_name(&self, place: usize, name: &str) -> String {
        let namespace = match self.naming.strategy {
            NamespaceStrategy::ServerPrefix | NamespaceStrategy::Custom => self.namespaces[place].as_str(),
            NamespaceStrategy::Flat => "",
        };
        match self.naming.separator {
            Separator::Colons => qualified_name(namespace, name),
            Separator::Underscores => safe_name(namespace, name),
        }
    }

    fn listed_uri(&self, place: usize, uri: &str) -> String {
        match self.namespaces[place].as_str() {
            "" => uri.to_owned(),
            namespace => format!("{SCHEME}{namespace}/{uri}"),
        }
    }

    /// The inverse of [`Self::listed_uri`]. Some clients write the authority of a URI in lower case.
    fn own_uri<'a>(&self, place: usize, uri: &'a str) -> Option<&'a str> {
        let namespace = self.namespaces[place].as_str();
        let (authority, own) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        (!namespace.is_empty() && authority.eq_ignore_ascii_case(namespace)).then_some(own)
    }
}

/// Leaves out what no list can hold, and what comes twice.
fn admit<T>(entries: &mut Vec<T>, name: impl Fn(&T) -> &String) {
    let mut seen = HashSet::new();
    entries.retain(|entry| is_printable(name(entry)) && seen.insert(name(entry).clone()));
    entries.truncate(MAX_ENTRIES_PER_UPSTREAM);
}

/// URIs may be longer than the names of tools.
fn is_printable(name: &str) -> bool {
    is_acceptable(name) || (name.contains(':') && !name.chars().any(char::is_control))
}

/// Whether `uri` has what stands around the variables of `template`, in order.
fn may_match(template: &str, uri: &str) -> bool {
    let mut literals = template.split('{').map(|piece| piece.split_once('}').map_or(piece, |(_, literal)| literal));
    let Some(mut rest) = uri.strip_prefix(literals.next().unwrap_or_default()) else { return false };
    for literal in literals {
        match rest.find(literal) {
            Some(at) => rest = &rest[at + literal.len()..],
            None => return false,
        }
    }
    template.ends_with('}') || rest.is_empty()
}

impl fmt::Debug for Offers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offers").field("namespaces", &self.namespaces).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{StdioConfig, TransportConfig};

    fn offers(namespaces: &[&str], naming: NamingConfig) -> Offers {
        let upstreams = namespaces.iter().enumerate().map(|(place, namespace)| {
            let (command, env) = ("unused".to_owned(), BTreeMap::new());
            let stdio = StdioConfig { command, args: Vec::new(), env, cwd: None };
            let upstream = UpstreamConfig::new(&format!("u{place}"), TransportConfig::Stdio(stdio));
            UpstreamConfig { namespace: Namespace::new(namespace), ..upstream }
        });
        Offers::new(&upstreams.collect::<Vec<_>>(), naming)
    }

    fn offer(uris: &[&str], templates: &[&str], prompts: &[&str]) -> Offer {
        Offer {
            prompts: prompts.iter().map(|name| Prompt::new(*name, None::<String>, None)).collect(),
            resources: uris.iter().map(|uri| Resource::new(*uri, "r")).collect(),
            templates: templates.iter().map(|uri| ResourceTemplate::new(*uri, "t")).collect(),
        }
    }

    /// Where `uri` leads, as `place uri`.
    fn led(offers: &Offers, uri: &str) -> String {
        match offers.resolve_uri(uri, |_| true) {
            Ok(owned) => format!("{} {}", owned.upstream, owned.name),
            Err(error) => error.kind().to_owned(),
        }
    }

    #[test]
    fn a_listed_uri_leads_back_whatever_it_holds() {
        let offers = offers(&["docs", "my_db", ""], NamingConfig::default());
        let uris = ["file:///a/b?c=d#e", "test://x/%20y", "urn:isbn:1", "mcp://other/file:///nested"];
        for place in 0..3 {
            offers.replace(place, offer(&uris, &[], &[]));
        }
        let listed = offers.resources(|_| true);
        assert_eq!(listed.len(), 3 * uris.len());
        for (position, resource) in listed.iter().enumerate() {
            let (place, own) = (position / uris.len(), uris[position % uris.len()]);
            // What has no namespace is listed as it is, and found in the order of the configuration.
            let expected = if place == 2 { format!("0 {own}") } else { format!("{place} {own}") };
            assert_eq!(led(&offers, &resource.uri), expected, "{}", resource.uri);
        }
        assert_eq!(led(&offers, "mcp://DOCS/urn:isbn:1"), "0 urn:isbn:1");
        assert_eq!(led(&offers, "mcp://nobody/urn:isbn:1"), "unknown_resource");
    }

    #[test]
    fn an_upstreams_own_uri_is_found_by_its_lists_or_because_it_is_alone() {
        let offers = offers(&["a", "b"], NamingConfig::default());
        offers.replace(0, offer(&["x://1"], &[], &[]));
        assert_eq!(led(&offers, "x://unlisted"), "0 x://unlisted");
        offers.replace(1, offer(&["y://1"], &["z://{id}/end", "w://{+path}"], &[]));
        for (uri, expected) in [
            ("y://1", "1 y://1"),
            ("z://7/end", "1 z://7/end"),
            ("w://any/where", "1 w://any/where"),
            ("z://7/other", "unknown_resource"),
            ("x://unlisted", "unknown_resource"),
        ] {
            assert_eq!(led(&offers, uri), expected, "{uri}");
        }
    }

    #[test]
    fn of_two_prompts_with_one_name_the_first_keeps_it_and_neither_is_guessed() {
        let flat = NamingConfig { strategy: NamespaceStrategy::Flat, ..NamingConfig::default() };
        for (naming, names, of_bare) in
            [(flat, vec!["p"], Some(0)), (NamingConfig::default(), vec!["a::p", "b::p"], None)]
        {
            let offers = offers(&["a", "b"], naming);
            offers.replace(0, offer(&[], &[], &["p"]));
            offers.replace(1, offer(&[], &[], &["p", "p", "\u{7}"]));
            let listed: Vec<_> = offers.prompts(|_| true).into_iter().map(|prompt| prompt.name).collect();
            assert_eq!(listed, names);
            assert_eq!(offers.resolve_prompt("p", |_| true).ok().map(|owned| owned.upstream), of_bare);
            assert_eq!(offers.resolve_prompt("b__p", |_| true).unwrap().upstream, 1);
            assert_eq!(offers.resolve_prompt("p", |namespace| namespace == "b").unwrap().upstream, 1);
        }
    }

    #[tokio::test]
    async fn only_what_changed_is_announced() {
        let offers = offers(&["a"], NamingConfig::default());
        let (mut prompts, mut resources) = offers.changes();
        let mut changed = |part: Offer| {
            offers.replace(0, part);
            let seen = (prompts.has_changed().unwrap(), resources.has_changed().unwrap());
            prompts.mark_unchanged();
            resources.mark_unchanged();
            seen
        };
        assert_eq!(changed(offer(&["x://1"], &[], &[])), (false, true));
        assert_eq!(changed(offer(&["x://1"], &[], &["p"])), (true, false));
        assert_eq!(changed(offer(&["x://1"], &["x://{n}"], &["p"])), (false, true));
        assert_eq!(changed(offer(&["x://1"], &["x://{n}"], &["p"])), (false, false));
    }
}
