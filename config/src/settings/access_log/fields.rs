//! The fields of a user's own in a JSON line.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor},
    ser::SerializeMap,
};

use crate::one_or_many::TEXT_OR_KEYS;

/// In the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields(pub Vec<(String, FieldFormat)>);

/// One field's value.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldFormat {
    /// A format string. An operator alone gives a number or `null` where it has one.
    Text(String),
    /// An object within.
    Object(Fields),
}

impl Fields {
    /// Shows every format string, with its key path.
    pub(super) fn each(&self, path: &str, show: &mut impl FnMut(String, &str)) {
        for (key, format) in &self.0 {
            let path = format!("{path}.{key}");
            match format {
                FieldFormat::Text(text) => show(path, text),
                FieldFormat::Object(fields) => fields.each(&path, show),
            }
        }
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, format) in &self.0 {
            match format {
                FieldFormat::Text(text) => map.serialize_entry(key, text)?,
                FieldFormat::Object(fields) => map.serialize_entry(key, fields)?,
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("fields with format strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for FieldFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ways;

        impl<'de> Visitor<'de> for Ways {
            type Value = FieldFormat;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a format string, or fields within")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<FieldFormat, E> {
                Ok(FieldFormat::Text(text.into()))
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                keys: D,
            ) -> Result<FieldFormat, D::Error> {
                Fields::deserialize(keys).map(FieldFormat::Object)
            }
        }

        deserializer.deserialize_newtype_struct(TEXT_OR_KEYS, Ways)
    }
}

impl JsonSchema for Fields {
    fn schema_name() -> Cow<'static, str> {
        "AccessLogFields".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let within = generator.subschema_for::<Self>();
        json_schema!({
            "description": "Fields of a JSON line with their format strings, or with fields within.",
            "type": "object",
            "additionalProperties": { "anyOf": [{ "type": "string" }, within] },
        })
    }
}
