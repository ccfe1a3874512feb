//! Which model answers a name.

use mistralrs_telemetry::RwLock;
use tokio::sync::watch;

use crate::error::RequestError;
use crate::model::Model;

/// Loaded models by name. Shared by every handler, written when a model comes or goes: lock `model_router`.
pub struct ModelRouter {
    models: RwLock<Vec<Model>>,
    changed: watch::Sender<()>,
}

impl Default for ModelRouter {
    fn default() -> Self {
        Self { models: RwLock::new("model_router", Vec::new()), changed: watch::Sender::new(()) }
    }
}

impl ModelRouter {
    /// Adds a loaded model; one of the same name is replaced and returned.
    pub fn insert(&self, model: Model) -> Option<Model> {
        let mut models = self.models.write();
        let previous = models.iter().position(|known| known.info().id == model.info().id).map(|at| models.remove(at));
        models.push(model);
        drop(models);
        self.changed.send_replace(());
        previous
    }

    /// A receiver that changes when a model comes or goes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The model named `requested`; `default` and the empty name are the first one loaded.
    pub fn route(&self, requested: &str) -> Result<Model, RequestError> {
        let models = self.models.read();
        let found = match requested {
            "" | "default" => models.first(),
            name => models.iter().find(|model| model.info().id == name),
        };
        found.cloned().ok_or_else(|| RequestError::UnknownModel {
            requested: requested.to_owned(),
            available: models.iter().map(|model| model.info().id.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// All models, in the order of loading.
    pub fn models(&self) -> Vec<Model> {
        self.models.read().clone()
    }
}
