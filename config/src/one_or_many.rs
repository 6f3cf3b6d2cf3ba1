//! What can be written in two ways: one thing or a list of them, a word or keys with values.

use std::{borrow::Cow, fmt, marker::PhantomData, ops::Deref};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
};

/// Names of a newtype by which a type tells the reader that it can be written in two ways: a list is
/// shown as a list, and all else as the newtype's inside. Serde's own way (`untagged`) would lose the
/// place of whatever is wrong within.
pub(crate) const ONE_OR_LIST: &str = "outrigger::one_or_list";

/// The same for text in place of keys with values.
pub(crate) const TEXT_OR_KEYS: &str = "outrigger::text_or_keys";

/// A list, whose only item may be written without the list.
#[derive(Clone, Debug, PartialEq)]
pub struct OneOrMany<T> {
    items: Vec<T>,
    is_list: bool,
}

impl<T> OneOrMany<T> {
    /// The key path of an item, of the whole written at `key`.
    pub fn path(&self, key: &str, index: usize) -> String {
        match self.is_list {
            true => format!("{key}[{index}]"),
            false => key.to_owned(),
        }
    }
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self::from(Vec::new())
    }
}

impl<T> From<Vec<T>> for OneOrMany<T> {
    fn from(items: Vec<T>) -> Self {
        Self {
            items,
            is_list: true,
        }
    }
}

impl<T> Deref for OneOrMany<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.items.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ways<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Ways<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keys with values, or a list of such")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                one: D,
            ) -> Result<Self::Value, D::Error> {
                Ok(OneOrMany {
                    items: vec![T::deserialize(one)?],
                    is_list: false,
                })
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(OneOrMany::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(OneOrMany::from(items))
            }
        }

        deserializer.deserialize_newtype_struct(ONE_OR_LIST, Ways(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("{}OrList", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}
