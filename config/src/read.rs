//! From a tree to values of any type, telling everything wrong on the way.
//!
//! Serde's derived code stops at the first error. So what made it fail is told, taken out of the
//! tree and the reading repeated: a key that is missing has its default, an item is left out. Unknown
//! keys need no repetition.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    fmt, ptr,
};

use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeSeed, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess, Visitor,
    },
    forward_to_deserialize_any,
};

use crate::{
    problem::{Place, Problem, meant},
    yaml::{Node, Value, joined},
};

/// Further ones are not looked for: whoever has that many begins with the first.
pub(crate) const MAX_PROBLEMS: usize = 100;

pub(crate) struct Reader<'t> {
    root: &'t Node<'t>,
    /// Nodes and keys that have been told, by address.
    bad: RefCell<HashSet<usize>>,
    problems: RefCell<Vec<Problem>>,
}

impl<'t> Reader<'t> {
    pub(crate) fn new(root: &'t Node<'t>) -> Self {
        Self {
            root,
            bad: RefCell::default(),
            problems: RefCell::default(),
        }
    }

    /// Takes `node` out: it is read apart.
    pub(crate) fn leave_out(&self, node: &Node<'_>) {
        self.bad.borrow_mut().insert(address(node));
    }

    /// As much of `node` as can be read; `None` if nothing of it can.
    pub(crate) fn read<T: Deserialize<'t>>(&self, node: &'t Node<'t>) -> Option<T> {
        loop {
            let failed_at = Cell::new(node);
            let value = Reading {
                reader: self,
                node,
                is_bare: false,
                failed_at: &failed_at,
            };
            let failure = match T::deserialize(value) {
                Ok(value) => return Some(value),
                Err(failure) => failure,
            };
            let failed_at = failed_at.get();
            let is_new = self.bad.borrow_mut().insert(address(failed_at));
            if is_new && !(failure.is_missing && self.has_bad_child(failed_at)) {
                self.tell(failed_at, failure.message);
            }
            if !is_new || ptr::eq(failed_at, node) || self.problems.borrow().len() >= MAX_PROBLEMS {
                return None;
            }
        }
    }

    /// Whether something in `node` has been told.
    pub(crate) fn is_bad(&self, node: &Node<'_>) -> bool {
        self.bad.borrow().contains(&address(node))
            || match &node.value {
                Value::Scalar { .. } => false,
                Value::List(items) => items.iter().any(|item| self.is_bad(item)),
                Value::Map(entries) => entries.iter().any(|(key, value)| {
                    self.bad.borrow().contains(&address(key)) || self.is_bad(value)
                }),
            }
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    fn has_bad_child(&self, node: &Node<'_>) -> bool {
        let bad = self.bad.borrow();
        match &node.value {
            Value::Map(entries) => entries
                .iter()
                .any(|(_, value)| bad.contains(&address(value))),
            _ => false,
        }
    }

    fn tell(&self, node: &Node<'_>, message: String) {
        let (path, place) = self
            .root
            .path_of(node)
            .unwrap_or((String::new(), node.place));
        self.push(path, place, message);
    }

    fn push(&self, path: String, place: Place, message: String) {
        self.problems.borrow_mut().push(Problem {
            path,
            at: Some(place),
            ..Problem::error(message)
        });
    }
}

fn address<T>(of: &T) -> usize {
    ptr::from_ref(of).addr()
}

/// Why a value could not be read.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    /// A key that has no default is not there.
    is_missing: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            message: plain(message.to_string()),
            is_missing: false,
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            message: format!("`{field}` is missing; add `{field}: …` here, for it has no default"),
            is_missing: true,
        }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!(
            "`{variant}` is not known here; {}",
            instead(variant, expected)
        ))
    }
}

/// What to write instead of `written`.
fn instead(written: &str, names: &'static [&'static str]) -> String {
    match meant(written, names.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("there are: {}", names.join(", ")),
    }
}

/// The words of parsers, which know types only, with what to write instead.
fn plain(message: String) -> String {
    let write = match message.as_str() {
        "invalid socket address syntax" => {
            "an address and port, such as `127.0.0.1:15001` or `\"[::1]:15001\"`"
        }
        "invalid IP address syntax" => "a network, such as `10.0.0.0/8` or `192.0.2.1/32`",
        _ if message.contains("expected a nonzero") => {
            return "0 is not possible here; write a whole number from 1 on".into();
        }
        _ => return message,
    };
    format!("{message}; write {write}")
}

/// A node to be read.
#[derive(Clone, Copy)]
struct Reading<'r, 't> {
    reader: &'r Reader<'t>,
    node: &'t Node<'t>,
    /// Only a name was written where a name with values could be: every value has its default.
    is_bare: bool,
    /// The innermost node that failed.
    failed_at: &'r Cell<&'t Node<'t>>,
}

impl<'t> Reading<'_, 't> {
    fn child(self, node: &'t Node<'t>) -> Self {
        Self {
            node,
            is_bare: false,
            ..self
        }
    }

    /// Reads into `seed`, and notes this node if it fails and nothing within it has.
    fn into_seed<S: DeserializeSeed<'t>>(self, seed: S) -> Result<S::Value, Failure> {
        let outer = self.failed_at.get();
        self.failed_at.set(self.node);
        let value = seed.deserialize(self)?;
        self.failed_at.set(outer);
        Ok(value)
    }

    fn is_null(self) -> bool {
        self.is_bare || self.node.is_null()
    }

    fn text(self, wanted: &str) -> Result<&'t str, Failure> {
        match &self.node.value {
            _ if self.is_null() => Err(Failure::custom(format_args!(
                "there is no value; write {wanted}"
            ))),
            Value::Scalar { text, .. } => Ok(text),
            Value::List(_) => Err(Failure::custom(format_args!(
                "this is a list; write {wanted}"
            ))),
            Value::Map(_) => Err(Failure::custom(format_args!(
                "these are keys with values; write {wanted}"
            ))),
        }
    }

    fn number<T: std::str::FromStr>(self, wanted: &str) -> Result<T, Failure> {
        let text = self.text(wanted)?;
        let digits = text.replace('_', "");
        digits.parse().map_err(|_| {
            Failure::custom(format_args!(
                "`{text}` is not possible here; write {wanted}"
            ))
        })
    }
}

macro_rules! whole_numbers {
    ($($method:ident $visit:ident $type:ty,)*) => {
        $(fn $method<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
            visitor.$visit(self.number(&format!("a whole number, from {} to {}", <$type>::MIN, <$type>::MAX))?)
        })*
    };
}

impl<'t> Deserializer<'t> for Reading<'_, 't> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.node.value {
            _ if self.is_null() => visitor.visit_unit(),
            Value::Scalar { text, is_plain } => {
                if *is_plain {
                    if let Ok(number) = text.parse::<u64>() {
                        return visitor.visit_u64(number);
                    }
                    if let Ok(number) = text.parse::<i64>() {
                        return visitor.visit_i64(number);
                    }
                    if let Ok(truth) = text.parse::<bool>() {
                        return visitor.visit_bool(truth);
                    }
                }
                visitor.visit_borrowed_str(text)
            }
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_bool(self.number("`true` or `false`")?)
    }

    whole_numbers! {
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
    }

    fn deserialize_f32<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        let number: f64 = self.number("a number, such as `1.5`")?;
        if !number.is_finite() {
            return Err(Failure::custom(
                "this is no finite number; write one such as `1.5`",
            ));
        }
        visitor.visit_f64(number)
    }

    fn deserialize_str<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_borrowed_str(self.text("text")?)
    }

    fn deserialize_string<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        let items = match &self.node.value {
            // Everything below the key is commented out.
            _ if self.is_null() => &[],
            Value::List(items) => items.as_slice(),
            _ => {
                return Err(Failure::custom(
                    "this is no list; write a list, such as `[a, b]`",
                ));
            }
        };
        visitor.visit_seq(Items {
            of: self,
            rest: items.iter(),
        })
    }

    fn deserialize_map<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_struct("", &[], visitor)
    }

    /// Without `fields` any key will do.
    fn deserialize_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let entries = match &self.node.value {
            _ if self.is_null() => &[],
            Value::Map(entries) => entries.as_slice(),
            _ => {
                return Err(Failure::custom(
                    "keys are expected here; write keys with values, such as `key: value`",
                ));
            }
        };
        visitor.visit_map(Entries {
            of: self,
            fields,
            rest: entries.iter(),
            value: None,
        })
    }

    fn deserialize_enum<V: Visitor<'t>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let one_of = || format!("one of: {}", variants.join(", "));
        match &self.node.value {
            _ if self.is_null() => Err(Failure::custom(format_args!(
                "there is no value; write {}",
                one_of()
            ))),
            Value::Scalar { text, .. } => visitor.visit_enum(Choice {
                name: text,
                of: Self {
                    is_bare: true,
                    ..self
                },
            }),
            Value::Map(entries) if entries.len() == 1 => visitor.visit_enum(Choice {
                name: &entries[0].0.text,
                of: self.child(&entries[0].1),
            }),
            Value::Map(_) => Err(Failure::custom(format_args!(
                "exactly one key is expected here; write {}",
                one_of()
            ))),
            Value::List(_) => Err(Failure::custom(format_args!(
                "this is a list; write {}",
                one_of()
            ))),
        }
    }

    fn deserialize_unit<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.node.value {
            _ if self.is_null() => visitor.visit_unit(),
            Value::Map(entries) if entries.is_empty() => visitor.visit_unit(),
            _ => Err(Failure::custom(
                "this takes no values; write the name alone",
            )),
        }
    }

    fn deserialize_identifier<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { <V: Visitor<'t>> i128 u128 char bytes byte_buf unit_struct tuple tuple_struct }
}

struct Items<'r, 't> {
    of: Reading<'r, 't>,
    rest: std::slice::Iter<'t, Node<'t>>,
}

impl<'t> SeqAccess<'t> for Items<'_, 't> {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'t>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Failure> {
        let bad = &self.of.reader.bad;
        match self
            .rest
            .find(|item| !bad.borrow().contains(&address(*item)))
        {
            Some(item) => self.of.child(item).into_seed(seed).map(Some),
            None => Ok(None),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

struct Entries<'r, 't> {
    of: Reading<'r, 't>,
    fields: &'static [&'static str],
    rest: std::slice::Iter<'t, (crate::yaml::Key<'t>, Node<'t>)>,
    value: Option<&'t Node<'t>>,
}

impl<'t> MapAccess<'t> for Entries<'_, 't> {
    type Error = Failure;

    fn next_key_seed<S: DeserializeSeed<'t>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Failure> {
        let reader = self.of.reader;
        for (key, value) in self.rest.by_ref() {
            if reader.bad.borrow().contains(&address(value)) {
                continue;
            }
            if !self.fields.is_empty() && !self.fields.contains(&key.text.as_ref()) {
                if reader.bad.borrow_mut().insert(address(key)) {
                    let above = reader
                        .root
                        .path_of(self.of.node)
                        .map_or(String::new(), |(path, _)| path);
                    let message = format!(
                        "unknown key `{}`; {}",
                        key.text,
                        instead(&key.text, self.fields)
                    );
                    reader.push(joined(&above, &key.text), key.place, message);
                }
                continue;
            }
            self.value = Some(value);
            return seed
                .deserialize(de::value::BorrowedStrDeserializer::new(&key.text))
                .map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        let value = self
            .value
            .take()
            .ok_or_else(|| Failure::custom("a value before its key"))?;
        self.of.child(value).into_seed(seed)
    }
}

/// A name, and what belongs to it.
struct Choice<'r, 't> {
    name: &'t str,
    of: Reading<'r, 't>,
}

impl<'r, 't> EnumAccess<'t> for Choice<'r, 't> {
    type Error = Failure;
    type Variant = Reading<'r, 't>;

    fn variant_seed<S: DeserializeSeed<'t>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Reading<'r, 't>), Failure> {
        let name = de::value::BorrowedStrDeserializer::new(self.name);
        Ok((seed.deserialize(name)?, self.of))
    }
}

impl<'t> VariantAccess<'t> for Reading<'_, 't> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        Deserialize::deserialize(self)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'t>>(self, seed: S) -> Result<S::Value, Failure> {
        self.into_seed(seed)
    }

    fn tuple_variant<V: Visitor<'t>>(self, _: usize, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'t>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_struct("", fields, visitor)
    }
}
