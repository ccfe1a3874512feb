//! A scrape of `/metrics`, read as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;

/// One line of a scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its name, histogram suffixes included.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// What `# HELP` and `# TYPE` say of one metric.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Family {
    /// `counter`, `gauge`, `histogram`, …
    pub kind: String,
    /// The help line.
    pub help: String,
}

/// A whole scrape.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    /// Metrics by name.
    pub families: BTreeMap<String, Family>,
    /// All samples, in order.
    pub samples: Vec<Sample>,
}

impl Scrape {
    /// Reads the text format.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut scrape = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
                help.clone_into(&mut scrape.families.entry(name.to_owned()).or_default().help);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').with_context(|| format!("no type in {line:?}"))?;
                kind.clone_into(&mut scrape.families.entry(name.to_owned()).or_default().kind);
            } else if !line.starts_with('#') {
                scrape.samples.push(parse_sample(line).with_context(|| format!("cannot read {line:?}"))?);
            }
        }
        Ok(scrape)
    }

    /// The sum of all samples named `name` that carry every label of `labels`. A metric that is absent is an error, so
    /// that a misspelt name cannot pass as 0.
    pub fn require(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        self.matching(name, labels)
            .map(|sample| sample.value)
            .reduce(|sum, value| sum + value)
            .with_context(|| format!("no sample {name}{labels:?} on /metrics"))
    }

    /// As [`Self::require`], for what only counts things.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<u64> {
        let value = self.require(name, labels)?;
        anyhow::ensure!(value >= 0.0 && value.fract() == 0.0, "{name} is {value}, which is not a count");
        Ok(value as u64)
    }

    /// All values of `label` on samples named `name`.
    pub fn label_values(&self, name: &str, label: &str) -> BTreeSet<String> {
        self.matching(name, &[]).filter_map(|sample| sample.labels.get(label).cloned()).collect()
    }

    /// The label names that samples of metric `family` carry, `le` left out.
    pub fn label_names(&self, family: &str) -> BTreeSet<String> {
        let owned = |sample: &&Sample| {
            let suffix = sample.name.strip_prefix(family);
            matches!(suffix, Some("" | "_bucket" | "_sum" | "_count"))
        };
        let names = self.samples.iter().filter(owned).flat_map(|sample| sample.labels.keys().cloned());
        names.filter(|name| name != "le").collect()
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).map(String::as_str) == Some(*value))
        })
    }
}

fn parse_sample(line: &str) -> anyhow::Result<Sample> {
    let (name, labels, rest) = if let Some((name, rest)) = line.split_once('{') {
        let (labels, rest) = parse_labels(rest)?;
        (name, labels, rest)
    } else {
        let (name, rest) = line.split_once(' ').context("no value")?;
        (name, BTreeMap::new(), rest)
    };
    let value = rest.split_whitespace().next().context("no value")?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse()?,
    };
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// Labels up to the closing brace, and what follows it. Values may hold escaped quotes.
fn parse_labels(mut text: &str) -> anyhow::Result<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        text = text.trim_start_matches(',');
        if let Some(rest) = text.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, rest) = text.split_once("=\"").context("a label without a value")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next().context("an open quote")? {
                (index, '"') => break index + 1,
                (_, '\\') => match characters.next().context("an open escape")?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.to_owned(), value);
        text = &rest[end..];
    }
}
