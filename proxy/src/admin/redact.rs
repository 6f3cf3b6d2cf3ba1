//! Keeps secrets out of what is shown of a configuration, whatever keys it may get: by what a key is
//! called, and by what a header is.

use serde_json::Value;

const REDACTED: &str = "(redacted)";

/// Parts of the names of keys and headers whose values are secrets.
const SECRET: [&str; 9] = [
    "password",
    "passwd",
    "secret",
    "token",
    "credential",
    "authorization",
    "cookie",
    "api-key",
    "private-key",
];

/// Keys that name a secret's place, and those that are about something else.
const HARMLESS: [&str; 6] = [
    "token_file",
    "cookie",
    "tokens",
    "max_tokens",
    "tokens_per_fill",
    "token_bucket",
];

pub(super) fn redact(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(entries) => {
            // `{ name: authorization, value: … }`.
            let names_secret = ["name", "key", "header"].iter().any(|key| {
                entries
                    .get(*key)
                    .and_then(Value::as_str)
                    .is_some_and(is_secret)
            });
            for (key, value) in entries {
                let is_secret =
                    is_secret(key) && !HARMLESS.contains(&&**key) || names_secret && key == "value";
                match value {
                    Value::String(text) if is_secret => *text = REDACTED.into(),
                    Value::Array(items) if is_secret => {
                        *items = vec![Value::from(REDACTED)];
                    }
                    value => redact(value),
                }
            }
        }
        Value::String(text) => {
            if let Some(clean) = without_password(text) {
                *text = clean;
            }
        }
        _ => {}
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('_', "-");
    SECRET.iter().any(|secret| name.contains(secret))
}

/// A URL without its user and password, if it has any.
fn without_password(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let at = authority.rfind('@')?;
    Some(format!("{scheme}://{REDACTED}@{}", &rest[at + 1..]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_found_by_their_names_wherever_they_stand() {
        let mut value = json!({
            "admin": { "token_file": "/etc/token" },
            "headers": [{ "name": "Authorization", "value": "Basic abc" }, { "name": "x-a", "value": "b" }],
            "set": { "x-api-key": "abc", "Cookie": ["a=b"], "x-a": "b" },
            "client_secret": "abc",
            "hash_on": { "cookie": { "name": "id" } },
            "endpoint": "https://user:pass@collector/v1",
        });
        redact(&mut value);
        assert_eq!(
            value,
            json!({
                "admin": { "token_file": "/etc/token" },
                "headers": [{ "name": "Authorization", "value": "(redacted)" }, { "name": "x-a", "value": "b" }],
                "set": { "x-api-key": "(redacted)", "Cookie": ["(redacted)"], "x-a": "b" },
                "client_secret": "(redacted)",
                "hash_on": { "cookie": { "name": "id" } },
                "endpoint": "https://(redacted)@collector/v1",
            })
        );
    }
}
