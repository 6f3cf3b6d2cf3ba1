//! A YAML text as a tree that knows where each part of it stands.

use std::{borrow::Cow, collections::HashMap, ptr};

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, options};

use crate::problem::{Place, Problem};

/// Bytes of a file: 100,000 endpoints with every key written take 20 MB.
pub(crate) const MAX_BYTES: usize = 64 << 20;

/// Values in a file, those that aliases repeat counted each time: 100,000 endpoints with every key
/// written take 1,500,000. It is what bounds memory (some 100 bytes each) and alias bombs.
const MAX_NODES: usize = 4_000_000;

/// Lists and keys within each other; the vocabulary needs 8. Reading and dropping recurse.
const MAX_DEPTH: usize = 64;

#[derive(Clone, Debug)]
pub(crate) struct Node<'t> {
    pub(crate) place: Place,
    pub(crate) value: Value<'t>,
}

#[derive(Clone, Debug)]
pub(crate) enum Value<'t> {
    /// Without quotes it may stand for something else than text.
    Scalar {
        text: Cow<'t, str>,
        is_plain: bool,
    },
    List(Vec<Node<'t>>),
    Map(Vec<(Key<'t>, Node<'t>)>),
}

#[derive(Clone, Debug)]
pub(crate) struct Key<'t> {
    pub(crate) place: Place,
    pub(crate) text: Cow<'t, str>,
}

/// The one document in `text`; `None` if there is nothing in it.
///
/// # Errors
/// What is no YAML, or more than the bounds allow: the first such thing, for what follows it would
/// be guesswork. Keys written twice are all told, and the tree with the first of each.
pub(crate) fn parse(text: &str) -> (Option<Node<'_>>, Vec<Problem>) {
    let mut builder = Builder::default();
    if text.len() > MAX_BYTES {
        let problem = Problem::error(format!(
            "the file has {} bytes, more than the {MAX_BYTES} that are read; move endpoints to files of their own (`file:`)",
            text.len()
        ));
        return (None, vec![problem]);
    }
    let options = options! {
        disallow_directives: true,
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    for event in Parser::new_from_str_with_options(text, options) {
        let step = match event {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => Err(no_yaml(&error)),
        };
        if let Err(problem) = step {
            builder.problems.push(problem);
            return (None, builder.problems);
        }
    }
    (builder.root, builder.problems)
}

impl<'t> Node<'t> {
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, is_plain: true } if matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL"))
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&(Key<'t>, Self)> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k.text == key),
            _ => None,
        }
    }

    pub(crate) fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// Where a key path such as `clusters[3].dns.port` stands, or as much of it as is written: a
    /// value if it is on its key's line, else the key.
    pub(crate) fn locate(&self, path: &str) -> Place {
        self.follow(path).1
    }

    /// What stands at a key path.
    pub(crate) fn find(&self, path: &str) -> Option<&Self> {
        self.follow(path).0
    }

    fn follow(&self, path: &str) -> (Option<&Self>, Place) {
        let mut node = self;
        let mut place = self.place;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let found = match step.strip_suffix(']') {
                Some(index) => index
                    .parse()
                    .ok()
                    .and_then(|index: usize| node.items().get(index))
                    .map(|item| (item.place, item)),
                None => node
                    .entry(step)
                    .map(|(key, value)| (shown(key, value), value)),
            };
            let Some(found) = found else {
                return (None, place);
            };
            (place, node) = found;
        }
        (Some(node), place)
    }

    /// The key path of `wanted`, a node of this tree, and where it stands.
    pub(crate) fn path_of(&self, wanted: &Self) -> Option<(String, Place)> {
        if ptr::eq(self, wanted) {
            return Some((String::new(), self.place));
        }
        match &self.value {
            Value::Scalar { .. } => None,
            Value::List(items) => items.iter().enumerate().find_map(|(index, item)| {
                let (below, place) = item.path_of(wanted)?;
                Some((joined(&format!("[{index}]"), &below), place))
            }),
            Value::Map(entries) => entries.iter().find_map(|(key, value)| {
                if ptr::eq(value, wanted) {
                    return Some((key.text.to_string(), shown(key, value)));
                }
                let (below, place) = value.path_of(wanted)?;
                Some((joined(&key.text, &below), place))
            }),
        }
    }
}

/// `a` and `b` as one path.
pub(crate) fn joined(a: &str, b: &str) -> String {
    match (a, b) {
        ("", path) | (path, "") => path.to_owned(),
        _ if b.starts_with('[') => format!("{a}{b}"),
        _ => format!("{a}.{b}"),
    }
}

fn shown(key: &Key<'_>, value: &Node<'_>) -> Place {
    if value.place.line == key.place.line && value.place.width > 0 {
        value.place
    } else {
        key.place
    }
}

/// Builds the tree from the parser's events.
#[derive(Default)]
struct Builder<'t> {
    root: Option<Node<'t>>,
    open: Vec<Open<'t>>,
    anchors: HashMap<usize, Node<'t>>,
    nodes: usize,
    problems: Vec<Problem>,
}

/// A list or map whose end has not come yet.
struct Open<'t> {
    node: Node<'t>,
    anchor: usize,
    /// Of a map: the key whose value comes next.
    key: Option<Key<'t>>,
}

impl<'t> Builder<'t> {
    fn take(&mut self, event: Event<'t>, span: Span) -> Result<(), Problem> {
        let place = place(&span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(tag) = tag {
                    return Err(refused(
                        place,
                        &format!("the tag `{tag}` has no meaning here; leave it out"),
                    ));
                }
                let is_plain = style == ScalarStyle::Plain;
                let value = Value::Scalar { text, is_plain };
                self.close(Node { place, value }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.begin(place, Value::List(Vec::new()), anchor, tag.is_some())
            }
            Event::MappingStart(_, anchor, tag) => {
                self.begin(place, Value::Map(Vec::new()), anchor, tag.is_some())
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.close(open.node, open.anchor),
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let Some(mut node) = self.anchors.get(&anchor).cloned() else {
                    return Err(refused(
                        place,
                        "an alias inside of what it stands for has no end; write the value out",
                    ));
                };
                self.count(nodes_of(&node), place)?;
                node.place = place;
                self.close(node, 0)
            }
            Event::DocumentStart(..) if self.root.is_some() => Err(refused(
                place,
                "a second document begins here; one file holds one configuration, so remove the `---`",
            )),
            _ => Ok(()),
        }
    }

    fn begin(
        &mut self,
        place: Place,
        value: Value<'t>,
        anchor: usize,
        is_tagged: bool,
    ) -> Result<(), Problem> {
        if is_tagged {
            return Err(refused(place, "tags have no meaning here; leave it out"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(refused(
                place,
                &format!("nested deeper than {MAX_DEPTH} levels; no key needs that"),
            ));
        }
        self.open.push(Open {
            node: Node { place, value },
            anchor,
            key: None,
        });
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn close(&mut self, node: Node<'t>, anchor: usize) -> Result<(), Problem> {
        self.count(1, node.place)?;
        if anchor != 0 {
            self.count(nodes_of(&node), node.place)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.node.value {
            Value::Scalar { .. } => {}
            Value::List(items) => items.push(node),
            Value::Map(entries) => match open.key.take() {
                None => {
                    let Value::Scalar { text, .. } = node.value else {
                        return Err(refused(
                            node.place,
                            "a list or map cannot be a key; write a name",
                        ));
                    };
                    let place = node.place;
                    open.key = Some(Key { place, text });
                }
                Some(key) => match entries.iter().find(|(k, _)| k.text == key.text) {
                    Some((first, _)) => self.problems.push(refused(
                        key.place,
                        &format!(
                            "the key `{}` is there twice, first on line {}; remove one of them",
                            key.text, first.place.line
                        ),
                    )),
                    None => entries.push((key, node)),
                },
            },
        }
        Ok(())
    }

    fn count(&mut self, nodes: usize, place: Place) -> Result<(), Problem> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(refused(
                place,
                &format!(
                    "more than {MAX_NODES} values, those that aliases repeat counted; split the file"
                ),
            ));
        }
        Ok(())
    }
}

fn nodes_of(node: &Node<'_>) -> usize {
    1 + match &node.value {
        Value::Scalar { .. } => 0,
        Value::List(items) => items.iter().map(nodes_of).sum(),
        Value::Map(entries) => entries.iter().map(|(_, value)| nodes_of(value)).sum(),
    }
}

fn place(span: &Span) -> Place {
    let (start, end) = (&span.start, &span.end);
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Place {
        line: number(start.line()),
        column: number(start.col() + 1),
        width: if start.line() == end.line() {
            number(end.col().saturating_sub(start.col()))
        } else {
            1
        },
    }
}

fn no_yaml(error: &ScanError) -> Problem {
    let marker = error.marker();
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let place = Place {
        line: number(marker.line()),
        column: number(marker.col() + 1),
        width: 1,
    };
    refused(
        place,
        &format!(
            "this is no valid YAML: {}; look at the indentation, colons and quotes here and on the line above",
            error.info()
        ),
    )
}

fn refused(place: Place, message: &str) -> Problem {
    Problem {
        at: Some(place),
        ..Problem::error(message.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        let (_, problems) = parse(text);
        problems
            .first()
            .map(ToString::to_string)
            .unwrap_or_default()
    }

    #[test]
    fn a_key_path_leads_to_its_place_and_back() {
        let (root, problems) = parse("a:\n  b: [1, { c: x }]\n");
        let root = root.unwrap();
        assert!(problems.is_empty());
        let place = root.locate("a.b[1].c");
        assert_eq!((place.line, place.column), (2, 15));
        let node = &root.entry("a").unwrap().1.entry("b").unwrap().1.items()[1];
        let c = &node.entry("c").unwrap().1;
        assert_eq!(root.path_of(c).unwrap(), ("a.b[1].c".into(), place));
        // What is not written is shown where it would belong.
        assert_eq!(root.locate("a.z.y").line, 1);
    }

    #[test]
    fn an_alias_is_what_it_stands_for() {
        let (root, _) = parse("a: &x [1, 2]\nb: *x\n");
        let root = root.unwrap();
        assert_eq!(root.entry("b").unwrap().1.items().len(), 2);
    }

    #[test]
    fn an_alias_bomb_is_refused_before_it_takes_memory() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..20 {
            let before = level - 1;
            let aliases = vec![format!("*a{before}"); 10].join(", ");
            text += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        assert!(problem(&text).contains("more than"), "{}", problem(&text));
    }

    #[test]
    fn what_is_deep_or_large_or_repeated_or_tagged_is_refused() {
        let deep = "[".repeat(100_000);
        for (text, told) in [
            (deep.as_str(), "no valid YAML"),
            ("a: 1\nb: 2\na: 3\n", "twice, first on line 1"),
            ("a: 1\n---\nb: 2\n", "second document"),
            ("a: !!binary xx\n", "tag"),
            ("a: &x [*x]\n", "alias"),
            ("? [a]\n: b\n", "cannot be a key"),
            ("a: *nowhere\n", "no valid YAML"),
            ("a: [1\n", "no valid YAML"),
        ] {
            assert!(
                problem(text).contains(told),
                "{}: {}",
                &text[..text.len().min(20)],
                problem(text)
            );
        }
    }
}
