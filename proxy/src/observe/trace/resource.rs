//! Whose spans these are: the resource, in OpenTelemetry's words.

use std::collections::BTreeMap;

use outrigger_config::Tracing;

const SERVICE_NAME: &str = "service.name";

/// Unless somebody says otherwise.
const DEFAULT_NAME: &str = "outrigger";

/// The resource's attributes: those of the settings before those of the environment (`variable` shows
/// it), as OpenTelemetry has it for what a program says of itself.
pub(super) fn attributes(
    settings: &Tracing,
    instance: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> BTreeMap<String, String> {
    let mut attributes: BTreeMap<String, String> = [
        (SERVICE_NAME, DEFAULT_NAME),
        ("service.instance.id", instance),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.name", "outrigger"),
        ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    if let Some(text) = variable("OTEL_RESOURCE_ATTRIBUTES") {
        match parse(&text) {
            Some(more) => attributes.extend(more),
            None => tracing::warn!(
                "OTEL_RESOURCE_ATTRIBUTES is ignored: it is no list of key=value, separated by commas, with values in percent-encoding"
            ),
        }
    }
    let name = variable("OTEL_SERVICE_NAME").filter(|name| !name.is_empty());
    let name = settings.service_name.clone().or(name);
    attributes.extend(name.map(|name| (SERVICE_NAME.to_owned(), name)));
    attributes.extend(settings.resource.clone());
    attributes
}

/// `key=value,key=value`, percent-encoded; all of it or nothing.
fn parse(text: &str) -> Option<Vec<(String, String)>> {
    let members = text.split(',').map(str::trim).filter(|m| !m.is_empty());
    members
        .map(|member| {
            let (key, value) = member.split_once('=')?;
            let key = decode(key.trim())?;
            (!key.is_empty()).then_some((key, decode(value.trim())?))
        })
        .collect()
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |b: u8| char::from(b).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(keys: &str, variables: &[(&str, &str)]) -> BTreeMap<String, String> {
        let text = format!("tracing: {{ endpoint: 'http://[::1]', {keys} }}");
        let settings = outrigger_config::parse(&text).expect("good settings");
        let variable = |name: &str| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        attributes(&settings.tracing.expect("it is on"), "i", variable)
    }

    #[test]
    fn the_settings_come_before_the_environment() {
        let list = (
            "OTEL_RESOURCE_ATTRIBUTES",
            "service.name=list, deployment.environment.name=a%20b%2Cc,team=t",
        );
        let name = ("OTEL_SERVICE_NAME", "variable");
        for (keys, variables, expected) in [
            ("", &[][..], "outrigger"),
            ("", &[list], "list"),
            ("", &[list, name], "variable"),
            ("service_name: settings", &[list, name], "settings"),
            ("resource: { service.name: map }", &[list, name], "map"),
            ("", &[("OTEL_SERVICE_NAME", "")], "outrigger"),
        ] {
            let attributes = named(keys, variables);
            assert_eq!(attributes[SERVICE_NAME], expected, "{keys} {variables:?}");
        }
        let attributes = named("resource: { team: u }", &[list]);
        assert_eq!(attributes["deployment.environment.name"], "a b,c");
        assert_eq!(attributes["team"], "u");
        assert_eq!(attributes["service.instance.id"], "i");
    }

    #[test]
    fn a_list_with_an_error_is_ignored_as_a_whole() {
        for broken in ["a", "a=1,b", "=1", "a=%", "a=%2", "a=%zz", "a=%ff"] {
            let attributes = named("", &[("OTEL_RESOURCE_ATTRIBUTES", broken)]);
            assert!(!attributes.contains_key("a"), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn hostile_lists_are_taken_by_nobody(text: String) {
            let _ = parse(&text);
        }
    }
}
