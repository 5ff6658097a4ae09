//! Every key of a recipe, from the declarations of all rooms: as one list, and as a JSON schema for editors.

use std::path::PathBuf;

use serde_json::{Map, Value as Json, json};

use super::{DeviceSpec, VERSION};
use crate::document::{Absence, Key, KeyTable, Parsed, Shaped, TableDescription, Value, ValueError, integer};
use crate::{adapter, data, generate, model, objective, quant, train};

/// The keys that belong to no table.
#[derive(Debug)]
pub(super) struct Top {
    pub(super) version: Option<Version>,
    pub(super) output_dir: Option<PathBuf>,
    pub(super) seed: u64,
    pub(super) device: DeviceSpec,
}

impl Default for Top {
    fn default() -> Self {
        Self { version: None, output_dir: None, seed: 42, device: DeviceSpec::Auto }
    }
}

/// The one version of the recipe format that this program reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version;

type K = Key<Top>;

pub(super) static TOP: KeyTable<Top> = KeyTable {
    meaning: "The keys above the first table.",
    keys: &[
        K::parsed("version", |top| &mut top.version).required("1").means("Version of the recipe format."),
        K::path("output_dir", |top| &mut top.output_dir)
            .bookkeeping()
            .required("\"runs/my-first-run\"")
            .means("The run folder: adapter, checkpoints and metrics.")
            .also(&["output", "output_path", "out_dir", "save_dir", "adapter_path", "run_dir"]),
        K::integer("seed", 0..=i64::MAX as u64, |top| &mut top.seed)
            .means(
                "Seed of the adapter's first weights, the order of the rows, the held-out rows and dropout.",
            )
            .also(&["random_seed", "data_seed"]),
        K::parsed("device", |top| &mut top.device)
            .means("What the run computes on; auto takes the best device of the machine.")
            .also(&["device_map", "accelerator", "use_cpu", "no_cuda"]),
    ],
    ..KeyTable::NEW
};

impl Parsed for Version {
    fn expected() -> String {
        VERSION.to_string()
    }

    fn schema() -> Json {
        json!({"const": VERSION})
    }

    fn read(value: &Value) -> Shaped<Self> {
        let version = integer(0..=u32::MAX)(value)?;
        if version == VERSION {
            return Ok(Self);
        }
        let message = format!("this program reads version {VERSION}, and the recipe says {version}");
        let help = match version > VERSION {
            true => "use a newer release of tune".to_owned(),
            false => format!("write `version = {VERSION}`"),
        };
        Err(vec![ValueError::new(value, message, "unknown version").help(help)])
    }

    fn written(&self) -> String {
        VERSION.to_string()
    }
}

/// Every table, in the order of a recipe.
pub fn tables() -> Vec<TableDescription> {
    vec![
        TOP.describe(),
        model::spec::TABLE.describe(),
        quant::spec::NF4.describe(),
        adapter::spec::TABLE.describe(),
        objective::spec::SFT.describe(),
        objective::spec::DPO.describe(),
        objective::spec::ORPO.describe(),
        objective::spec::SIMPO.describe(),
        objective::spec::KTO.describe(),
        data::spec::DATA.describe(),
        data::spec::DATASET.describe(),
        train::spec::TABLE.describe(),
        train::spec::LOCAL.describe(),
        train::gate::TABLE.describe(),
        generate::spec::TABLE.describe(),
    ]
}

/// A JSON schema (draft 7) of a whole recipe, for editors. It knows each key's type and range; what must hold between
/// keys, `tune validate` checks.
pub fn schema() -> Json {
    let mut root = object("A recipe of tune.");
    for table in tables() {
        let mut at = &mut root;
        for part in table.path.split('.').filter(|part| !part.is_empty()) {
            at = &mut at["properties"][part];
            if at.is_null() {
                *at = object("");
            }
            if at.get("items").is_some() {
                at = &mut at["items"];
            }
        }
        if table.repeated {
            *at = json!({"type": "array", "minItems": 1, "items": object("")});
            at = &mut at["items"];
        }
        at["description"] = json!(table.meaning);
        let mut required: Vec<Json> = Vec::new();
        for key in &table.keys {
            let mut schema = key.kind.schema();
            let absence = match &key.absence {
                Absence::Required(_) => {
                    required.push(json!(key.name));
                    String::new()
                }
                absence => format!(" ({absence})"),
            };
            schema["description"] = json!(format!("{}{absence}", key.meaning));
            if let Absence::Default(default) = &key.absence
                && let Some(default) = json_of(default)
            {
                schema["default"] = default;
            }
            at["properties"][key.name] = schema;
        }
        if table.path.is_empty() {
            required.extend(["model", "dataset", "train"].map(Json::from));
        }
        if !required.is_empty() {
            at["required"] = required.into();
        }
    }
    let mut schema = Map::new();
    schema.insert("$schema".into(), json!("http://json-schema.org/draft-07/schema#"));
    schema.insert("title".into(), json!("tune recipe"));
    if let Json::Object(root) = root {
        schema.extend(root);
    }
    schema.into()
}

fn object(description: &str) -> Json {
    json!({"type": "object", "description": description, "properties": {}, "additionalProperties": false})
}

/// A TOML value as JSON.
fn json_of(toml: &str) -> Option<Json> {
    let table: toml::Table = format!("value = {toml}").parse().ok()?;
    serde_json::to_value(table.get("value")?).ok()
}
