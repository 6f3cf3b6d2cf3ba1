//! Regular expressions, compiled as they are read.

use std::{borrow::Cow, str::FromStr};

use regex::bytes::RegexBuilder;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes that one may have: longer ones are no rule that a person can check.
const MAX_TEXT: usize = 1024;

/// Bytes of one when compiled, and of what it remembers while it runs. The crate's own limits, 10
/// and 2 MiB, would let a few of them fill the memory of a sidecar.
const MAX_PROGRAM: usize = 256 * 1024;

/// A regular expression of the `regex` crate, which runs in time linear in what it looks at. It
/// looks at bytes: `.`, `\w` and the like know ASCII only.
#[derive(Clone, Debug)]
struct Pattern {
    text: Box<str>,
    compiled: regex::bytes::Regex,
}

impl Pattern {
    fn new(text: &str, is_whole: bool) -> Result<Self, String> {
        if text.len() > MAX_TEXT {
            return Err(format!(
                "the expression has {} bytes; write one of at most {MAX_TEXT}",
                text.len()
            ));
        }
        let compiled = compile(text)?;
        let compiled = if is_whole {
            compile(&format!(r"\A(?:{text})\z"))?
        } else {
            compiled
        };
        Ok(Self {
            text: text.into(),
            compiled,
        })
    }
}

fn compile(text: &str) -> Result<regex::bytes::Regex, String> {
    RegexBuilder::new(text)
        .unicode(false)
        .size_limit(MAX_PROGRAM)
        .dfa_size_limit(MAX_PROGRAM)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => {
                format!(
                    "`{text}` takes more than {} KiB when compiled; write a simpler expression",
                    MAX_PROGRAM / 1024
                )
            }
            error => {
                // The first lines show where; the last one says what.
                let told = error.to_string();
                let what = told.lines().last().unwrap_or_default();
                let what = what.strip_prefix("error: ").unwrap_or(what);
                format!(
                    "`{text}` is no regular expression: {what}; write one such as `/v[0-9]+/.*`"
                )
            }
        })
}

/// A regular expression that the whole of something must match.
#[derive(Clone, Debug)]
pub struct MatchRegex(Pattern);

/// A regular expression that is looked for in something.
#[derive(Clone, Debug)]
pub struct SearchRegex(Pattern);

impl MatchRegex {
    pub fn is_match(&self, bytes: &[u8]) -> bool {
        self.0.compiled.is_match(bytes)
    }
}

impl SearchRegex {
    /// `bytes` with each match replaced by `template`, in which `\1` stands for the first group, `\0`
    /// for the whole match and `\\` for a backslash.
    pub fn replace_all<'b>(&self, bytes: &'b [u8], template: &str) -> Cow<'b, [u8]> {
        self.0
            .compiled
            .replace_all(bytes, in_other_words(template).as_bytes())
    }

    /// Groups, without the whole match.
    pub fn groups(&self) -> usize {
        self.0.compiled.captures_len() - 1
    }
}

/// The highest group that `template` asks for.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn highest_group(template: &str) -> Result<usize, &'static str> {
    let mut highest = 0;
    let mut chars = template.chars();
    while let Some(c) = chars.next() {
        if c == '\\' {
            match chars.next() {
                Some('\\') => {}
                Some(digit) if digit.is_ascii_digit() => {
                    highest = highest.max(digit as usize - '0' as usize);
                }
                _ => return Err("a backslash stands before a digit or another backslash"),
            }
        }
    }
    Ok(highest)
}

/// A template in the words of the `regex` crate.
fn in_other_words(template: &str) -> String {
    let mut text = String::with_capacity(template.len() + 8);
    let mut chars = template.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => text += "$$",
            '\\' => match chars.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    text.extend(["${", &digit.to_string(), "}"])
                }
                Some(other) => text.push(other),
                None => {}
            },
            other => text.push(other),
        }
    }
    text
}

macro_rules! as_text {
    ($type:ident, $is_whole:literal, $says:literal) => {
        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0.text
            }
        }

        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.as_str() == other.as_str()
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Pattern::new(text, $is_whole).map(Self)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "description": $says, "type": "string", "maxLength": MAX_TEXT })
            }
        }
    };
}

as_text!(
    MatchRegex,
    true,
    "A regular expression in the syntax of Rust's `regex` crate, which the whole must match."
);
as_text!(
    SearchRegex,
    false,
    "A regular expression in the syntax of Rust's `regex` crate, which may match anywhere."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_must_match_whichever_alternative_comes_first() {
        let regex: MatchRegex = "a|ab".parse().unwrap();
        assert!(regex.is_match(b"ab"));
        assert!(!regex.is_match(b"abc") && !regex.is_match(b"xa"));
        // No end of line counts as the end.
        assert!(!regex.is_match(b"a\n"));
    }

    #[test]
    fn groups_go_where_the_template_says() {
        let regex: SearchRegex = "/v([0-9]+)/([a-z]+)".parse().unwrap();
        assert_eq!(regex.groups(), 2);
        let replace = |template| regex.replace_all(b"/v1/users/7", template).into_owned();
        assert_eq!(replace(r"/\2/\1"), b"/users/1/7");
        assert_eq!(replace(r"/$1\\\0"), br"/$1\/v1/users/7");
        assert_eq!(highest_group(r"/\2\\3"), Ok(2));
        assert!(highest_group(r"a\").is_err() && highest_group(r"\x").is_err());
    }

    #[test]
    fn what_would_take_too_much_is_refused() {
        for text in ["(", "a{1000}{1000}", &"a".repeat(MAX_TEXT + 1)] {
            let error = text.parse::<MatchRegex>().unwrap_err();
            assert!(error.contains("write"), "{error}");
        }
    }
}
