//! JSON Schema of the configuration, for editors, from the same table that the reader uses.

use serde_json::{Value, json};

use super::Config;
use super::schema_table::{CONFIG, ConfigKey, ConfigSection, ValueKind};

impl Config {
    /// Returns the schema (draft 2020-12). The repository has it as `schema/imgsync.schema.json`, which a test keeps
    /// current.
    pub fn json_schema() -> Value {
        let mut schema = section_schema(&CONFIG);
        schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
        schema["title"] = json!("imgsync.yaml");
        schema["description"] =
            json!("Configuration of imgsync. Values may contain ${VAR}, ${VAR:-default} and ${VAR:?message}.");
        schema["$defs"] = json!({
            "variable": {"type": "string", "pattern": "\\$\\{"},
            "flag": {
                "anyOf": [
                    {"type": "boolean"},
                    {"enum": ["on", "off", "yes", "no"]},
                    {"$ref": "#/$defs/variable"},
                ],
            },
            // YAML reads an unquoted 1.20 as a number; imgsync keeps the text.
            "text": {"type": ["string", "number", "boolean"]},
            "duration": {"type": "string", "examples": ["90s", "1h30m", "7d"]},
            "size": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}], "examples": ["10MiB"]},
            "url": {"type": "string"},
            "secret": {"type": ["string", "number"], "description": "Prefer a variable: \"${TOKEN}\"."},
        });
        schema
    }
}

fn section_schema(section: &ConfigSection) -> Value {
    let properties: serde_json::Map<String, Value> =
        section.keys.iter().map(|key| (key.name.to_owned(), key_schema(key))).collect();
    json!({"type": "object", "additionalProperties": false, "properties": properties})
}

fn key_schema(key: &ConfigKey) -> Value {
    let mut schema = kind_schema(&key.kind);
    schema["description"] = json!(key.description);
    schema
}

fn kind_schema(what: &ValueKind) -> Value {
    let reference = |name: &str| json!({"$ref": format!("#/$defs/{name}")});
    match what {
        ValueKind::Text => reference("text"),
        ValueKind::Flag => reference("flag"),
        ValueKind::Integer => json!({"anyOf": [{"type": "integer", "minimum": 1}, reference("variable")]}),
        ValueKind::Number => json!({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, reference("variable")]}),
        ValueKind::Duration => reference("duration"),
        ValueKind::Since => json!({"type": "string", "examples": ["2025-01-01", "90d"]}),
        ValueKind::Size => reference("size"),
        ValueKind::Url => reference("url"),
        ValueKind::Secret => reference("secret"),
        ValueKind::Section(keys) => section_schema(keys),
        ValueKind::List(item) => json!({"type": "array", "items": kind_schema(item)}),
        ValueKind::OneOrMany(item) => {
            json!({"anyOf": [kind_schema(item), {"type": "array", "items": kind_schema(item), "minItems": 1}]})
        }
        ValueKind::Map(value) => json!({"type": "object", "additionalProperties": kind_schema(value)}),
        ValueKind::Either(kinds) => json!({"anyOf": kinds.iter().map(kind_schema).collect::<Vec<_>>()}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_SCHEMA=1 cargo nextest run the_schema` rewrites the file.
    #[test]
    fn the_schema_in_the_repository_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/imgsync.schema.json");
        let current = format!("{:#}\n", Config::json_schema());
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), current, "run the tests with UPDATE_SCHEMA=1");
    }
}
