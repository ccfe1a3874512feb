//! Finding tools by words: BM25 over names, descriptions and the names of arguments (Robertson and Zaragoza 2009, 3.4).

use std::collections::HashMap;

/// How fast a word that comes again counts less.
const K1: f32 = 1.2;
/// How much a long description counts against its tool.
const B: f32 = 0.75;
/// A word in a tool's name says more than one in its description.
const NAME_WEIGHT: f32 = 4.0;
/// Words of one query; the rest of a longer one is left out.
const MAX_QUERY_WORDS: usize = 32;
/// A word that is only the beginning of one in the index counts this much of it.
const PREFIX_WEIGHT: f32 = 0.5;
/// Shorter beginnings are of half the language.
const MIN_PREFIX_LENGTH: usize = 3;

/// The words of all tools of one catalog.
#[derive(Debug, Default)]
pub(crate) struct ToolIndex {
    /// Which documents have a word, and how much of it; sorted, so that words with one beginning stand together.
    words: Vec<(String, Vec<Posting>)>,
    /// Of each document, in words.
    lengths: Vec<f32>,
    mean_length: f32,
}

#[derive(Debug, Clone, Copy)]
struct Posting {
    document: usize,
    weight: f32,
}

/// What a tool is found by.
pub(crate) struct Document<'a> {
    pub name: &'a str,
    /// What else it is called.
    pub alias: Option<&'a str>,
    pub description: &'a str,
    pub arguments: Vec<&'a str>,
}

impl ToolIndex {
    /// Of `documents`, which it knows by their place.
    pub fn new<'a>(documents: impl IntoIterator<Item = Document<'a>>) -> Self {
        let mut words: HashMap<String, Vec<Posting>> = HashMap::new();
        let mut lengths = Vec::new();
        for (document, text) in documents.into_iter().enumerate() {
            let mut weights: HashMap<String, f32> = HashMap::new();
            let rest = text.arguments.iter().copied().chain([text.description]);
            let names = text.alias.into_iter().chain([text.name]).map(|name| (name, NAME_WEIGHT));
            let parts = names.chain(rest.map(|part| (part, 1.0)));
            for (part, weight) in parts {
                for word in words_of(part) {
                    *weights.entry(word).or_default() += weight;
                }
            }
            lengths.push(weights.values().sum());
            for (word, weight) in weights {
                words.entry(word).or_default().push(Posting { document, weight });
            }
        }
        let mut words: Vec<_> = words.into_iter().collect();
        words.sort_by(|left, right| left.0.cmp(&right.0));
        let total: f32 = lengths.iter().sum();
        let mean_length = if lengths.is_empty() { 1.0 } else { (total / lengths.len() as f32).max(1.0) };
        Self { words, lengths, mean_length }
    }

    /// Places of the documents that have any word of `query`, best first; equally good ones in their order.
    pub fn search(&self, query: &str) -> Vec<usize> {
        let mut scores: HashMap<usize, f32> = HashMap::new();
        for word in words_of(query).take(MAX_QUERY_WORDS) {
            for (postings, weight) in self.postings(&word) {
                let rarity = self.rarity(postings.len());
                for posting in postings {
                    *scores.entry(posting.document).or_default() += weight * rarity * self.saturation(*posting);
                }
            }
        }
        let mut found: Vec<_> = scores.into_iter().collect();
        found.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
        found.into_iter().map(|(document, _)| document).collect()
    }

    /// The word's own, and those of longer words that begin with it.
    fn postings(&self, word: &str) -> impl Iterator<Item = (&[Posting], f32)> {
        let start = self.words.partition_point(|(known, _)| known.as_str() < word);
        let alike = self.words[start..].iter().take_while(move |(known, _)| known.starts_with(word));
        let may_begin = word.chars().count() >= MIN_PREFIX_LENGTH;
        let length = word.len();
        alike.filter(move |(known, _)| may_begin || known.len() == length).map(move |(known, postings)| {
            (postings.as_slice(), if known.len() == length { 1.0 } else { PREFIX_WEIGHT })
        })
    }

    fn rarity(&self, num_documents: usize) -> f32 {
        let (all, having) = (self.lengths.len() as f32, num_documents as f32);
        (1.0 + (all - having + 0.5) / (having + 0.5)).ln()
    }

    fn saturation(&self, posting: Posting) -> f32 {
        let relative_length = self.lengths[posting.document] / self.mean_length;
        posting.weight * (K1 + 1.0) / (posting.weight + K1 * (1.0 - B + B * relative_length))
    }
}

/// Lower-case words: `readTextFile`, `read_text_file` and "reads text files" have them in common.
fn words_of(text: &str) -> impl Iterator<Item = String> + '_ {
    let pieces = text.split(|c: char| !c.is_alphanumeric()).filter(|piece| !piece.is_empty());
    pieces.flat_map(split_camel_case).map(|word| singular(&word.to_lowercase()))
}

fn split_camel_case(piece: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut previous) = (0, None::<char>);
    for (at, c) in piece.char_indices() {
        if c.is_uppercase() && previous.is_some_and(char::is_lowercase) {
            words.push(&piece[start..at]);
            start = at;
        }
        previous = Some(c);
    }
    words.push(&piece[start..]);
    words
}

/// Without the `s` of plurals and of verbs, which is as much grammar as a list of tools needs.
fn singular(word: &str) -> String {
    match word.strip_suffix('s') {
        Some(stem) if stem.len() >= MIN_PREFIX_LENGTH && !stem.ends_with('s') => stem.to_owned(),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOLS: [(&str, &str, &[&str]); 6] = [
        ("filesystem::read_text_file", "Read the contents of a file as text.", &["path", "head", "tail"]),
        ("filesystem::write_file", "Create a file or overwrite it.", &["path", "content"]),
        ("filesystem::list_directory", "List what is in a directory.", &["path"]),
        ("github::searchIssues", "Find issues and pull requests by words.", &["q", "repository"]),
        ("github::create_issue", "Open an issue in a repository.", &["title", "body", "repository"]),
        ("weather::forecast", "Tells tomorrow's temperatures.", &["city"]),
    ];

    fn index() -> ToolIndex {
        let documents = TOOLS.iter().map(|(name, description, arguments)| Document {
            name,
            alias: None,
            description,
            arguments: arguments.to_vec(),
        });
        ToolIndex::new(documents)
    }

    /// The tools that `query` finds, best first.
    fn check(query: &str, expected: &[&str]) {
        let found: Vec<&str> = index().search(query).into_iter().map(|place| TOOLS[place].0).collect();
        assert_eq!(found.get(..expected.len()), Some(expected), "{query}: {found:?}");
    }

    #[test]
    fn a_name_counts_more_than_a_mention() {
        check("read file", &["filesystem::read_text_file"]);
        check("list", &["filesystem::list_directory"]);
        check("create issue", &["github::create_issue"]);
    }

    #[test]
    fn words_are_found_in_every_way_they_are_written() {
        check("search issues", &["github::searchIssues"]);
        check("FILES", &["filesystem::write_file"]);
        check("city", &["weather::forecast"]);
        check("temperature", &["weather::forecast"]);
        check("direct", &["filesystem::list_directory"]);
    }

    #[test]
    fn what_has_none_of_the_words_is_not_found() {
        assert_eq!(index().search("kubernetes"), Vec::<usize>::new());
        assert_eq!(index().search(""), Vec::<usize>::new());
        assert_eq!(index().search("?!"), Vec::<usize>::new());
        assert_eq!(ToolIndex::new([]).search("file"), Vec::<usize>::new());
        // Two letters begin too much.
        assert_eq!(index().search("fo"), Vec::<usize>::new());
    }

    #[test]
    fn two_thousand_tools_are_searched_within_a_millisecond() {
        let names: Vec<String> = (0..2048).map(|n| format!("server{}::do_thing_{n}", n % 20)).collect();
        let documents = names.iter().map(|name| Document {
            name,
            alias: None,
            description: "Does a thing to another thing, in one of several ways that are described here at some length.",
            arguments: vec!["first", "second"],
        });
        let index = ToolIndex::new(documents);
        let fastest = (0..50).map(|_| {
            let started = std::time::Instant::now();
            assert_eq!(index.search("thing 1234")[0], 1234);
            started.elapsed()
        });
        // The fastest of many: a machine that is busy with other tests says nothing about the index.
        assert!(fastest.min().is_some_and(|fastest| fastest < std::time::Duration::from_millis(5)));
    }
}
