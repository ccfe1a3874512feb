//! What a directory that sentence-transformers wrote says about pooling.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::read_json;
use crate::error::LoadError;
use crate::pooling::{DeclaredPooling, Pooling};

/// The list of what a text goes through.
const MODULES_FILE: &str = "modules.json";
/// Where the library puts the second of its modules.
const POOLING_FILE: &str = "1_Pooling/config.json";

/// Modules whose work is done here; of any other the embeddings would be wrong without it.
const KNOWN_MODULES: [&str; 3] = ["Transformer", "Pooling", "Normalize"];

/// One entry of `modules.json`.
#[derive(Deserialize)]
struct Module {
    /// A Python path such as `sentence_transformers.models.Pooling`.
    r#type: String,
}

/// The file of the pooling module, of versions before and after 6.
#[derive(Deserialize)]
struct PoolingConfig {
    pooling_mode: Option<Modes>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Modes {
    One(String),
    Many(Vec<String>),
}

/// How the model in `directory` is meant to embed texts.
pub(super) fn pooling(directory: &Path) -> Result<DeclaredPooling, LoadError> {
    let modules: Vec<Module> = read_json(&directory.join(MODULES_FILE))?.unwrap_or_default();
    let mut names = modules.iter().map(|module| module.r#type.rsplit('.').next().unwrap_or_default());
    if let Some(other) = names.find(|name| !KNOWN_MODULES.contains(name)) {
        return Ok(DeclaredPooling::Unsupported(other.to_owned()));
    }
    let Some(config) = read_json::<PoolingConfig>(&directory.join(POOLING_FILE))? else {
        return Ok(DeclaredPooling::Unstated);
    };
    let modes = config.modes();
    Ok(match modes.as_slice() {
        [mode] => match mode.as_str() {
            "mean" => DeclaredPooling::Known(Pooling::Mean),
            "cls" => DeclaredPooling::Known(Pooling::Cls),
            "lasttoken" => DeclaredPooling::Known(Pooling::Last),
            other => DeclaredPooling::Unsupported(other.to_owned()),
        },
        // Several are put one after the other.
        several => DeclaredPooling::Unsupported(several.join("+")),
    })
}

impl PoolingConfig {
    /// The modes that are on; the library's default is the mean.
    fn modes(self) -> Vec<String> {
        let modes = match self.pooling_mode {
            Some(Modes::One(mode)) => vec![mode],
            Some(Modes::Many(modes)) => modes,
            None => {
                let switches = self.rest.iter().filter(|(_, value)| **value == Value::Bool(true));
                switches.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")).map(without_unit).collect()
            }
        };
        if modes.is_empty() { vec!["mean".to_owned()] } else { modes }
    }
}

/// `mean_tokens` and `cls_token` are what versions before 6 call `mean` and `cls`.
fn without_unit(mode: &str) -> String {
    let mode = mode.strip_suffix("_tokens").or_else(|| mode.strip_suffix("_token")).unwrap_or(mode);
    mode.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(files: &[(&str, &str)]) -> String {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("1_Pooling")).unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        match pooling(directory.path()) {
            Ok(declared) => format!("{declared:?}"),
            Err(error) => error.to_string().replace(&directory.path().display().to_string(), "<path>"),
        }
    }

    #[test]
    fn both_generations_of_the_pooling_file_are_read() {
        let of = |text: &str| declared(&[(POOLING_FILE, text)]);
        let older = r#"{"word_embedding_dimension": 64, "include_prompt": true, "pooling_mode_cls_token": false, "#;
        assert_eq!(of(&format!("{older} \"pooling_mode_mean_tokens\": true}}")), "Known(Mean)");
        assert_eq!(of(&format!("{older} \"pooling_mode_lasttoken\": true}}")), "Known(Last)");
        assert_eq!(of(r#"{"pooling_mode_cls_token": true}"#), "Known(Cls)");
        assert_eq!(of(&format!("{older} \"pooling_mode_max_tokens\": true}}")), "Unsupported(\"max\")");
        let two = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#;
        assert_eq!(of(two), "Unsupported(\"cls+mean\")");
        assert_eq!(of(r#"{"embedding_dimension": 64, "pooling_mode": "lasttoken"}"#), "Known(Last)");
        assert_eq!(of(r#"{"pooling_mode": ["mean", "max"]}"#), "Unsupported(\"mean+max\")");
        assert_eq!(of(r#"{"word_embedding_dimension": 64}"#), "Known(Mean)");
        let damaged = of("{");
        assert!(damaged.starts_with("`<path>/1_Pooling/config.json` is damaged"), "{damaged}");
        assert_eq!(declared(&[]), "Unstated");
    }

    #[test]
    fn a_module_whose_work_is_not_done_here_is_named() {
        let modules = |last: &str| {
            let types = ["Transformer", "Pooling", last]
                .map(|name| format!("{{\"type\": \"sentence_transformers.models.{name}\"}}"));
            format!("[{}]", types.join(","))
        };
        let config = (POOLING_FILE, r#"{"pooling_mode": "mean"}"#);
        assert_eq!(declared(&[(MODULES_FILE, &modules("Normalize")), config]), "Known(Mean)");
        assert_eq!(declared(&[(MODULES_FILE, &modules("Dense")), config]), "Unsupported(\"Dense\")");
    }
}
