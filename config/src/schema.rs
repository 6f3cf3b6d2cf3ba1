//! The JSON Schema of a configuration file, from the types that read it.

use schemars::{
    Schema,
    generate::SchemaSettings,
    transform::{Transform, transform_subschemas},
};
use serde_json::{Value, json};

use crate::Settings;

/// As JSON, for editors and other tools.
pub fn schema() -> String {
    let mut schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<Settings>();
    schema.insert("title".into(), "Outrigger configuration".into());
    BareNames.transform(&mut schema);
    serde_json::to_string_pretty(&schema).expect("a schema is JSON")
}

/// A variant that has values can be written as its bare name too, which gives all of them their
/// default.
struct BareNames;

impl Transform for BareNames {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let Some(Value::Array(variants)) = schema.get_mut("oneOf") else {
            return;
        };
        let names: Vec<_> = variants
            .iter()
            .filter_map(
                |variant| match variant.get("required")?.as_array()?.as_slice() {
                    [Value::String(name)]
                        if variant.get("properties")?.get(name)?.get("$ref").is_some() =>
                    {
                        Some(name.clone())
                    }
                    _ => None,
                },
            )
            .collect();
        if !names.is_empty() {
            variants.push(json!({
                "description": "With every default.",
                "type": "string",
                "enum": names,
            }));
        }
    }
}
