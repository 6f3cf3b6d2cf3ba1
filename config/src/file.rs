//! From a file's text to settings, or to every problem found in it.

use std::{io, io::Read, path::Path};

use crate::{
    Cluster, Endpoint, Problem, Route, Settings,
    check::{self, Findings},
    read::{MAX_PROBLEMS, Reader},
    yaml::{self, Node},
};

/// What a text says, and what is wrong with it.
#[derive(Debug)]
pub struct Checked {
    /// None if anything is an error.
    pub settings: Option<Settings>,
    /// In the order of the text.
    pub problems: Vec<Problem>,
}

/// Reads and checks the file at `path`.
///
/// # Errors
/// Every problem found; a file that cannot be read is one problem without a position.
pub fn read(path: &Path) -> Result<Settings, Vec<Problem>> {
    parse(&text(path).map_err(|problem| vec![problem])?)
}

/// Checks `text`; an empty text means all defaults.
///
/// # Errors
/// Every problem found, if one of them is an error.
pub fn parse(text: &str) -> Result<Settings, Vec<Problem>> {
    let Checked { settings, problems } = check(text);
    settings.ok_or(problems)
}

/// The text at `path`, for [`check`].
///
/// # Errors
/// Why it cannot be read.
pub fn text(path: &Path) -> Result<String, Problem> {
    let read = || {
        let mut text = String::new();
        // One byte more than allowed is enough to be told so; a device has no end.
        let limit = yaml::MAX_BYTES as u64 + 1;
        std::fs::File::open(path)?
            .take(limit)
            .read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; check the path",
            io::ErrorKind::PermissionDenied => {
                "; make it readable by the user that runs this command"
            }
            io::ErrorKind::IsADirectory => "; name a file in it",
            io::ErrorKind::InvalidData => "; it is no text file: write YAML in UTF-8",
            _ => "",
        };
        Problem::error(format!("cannot read it: {error}{hint}"))
    })
}

/// Everything that `text` says and that is wrong with it.
pub fn check(text: &str) -> Checked {
    let (root, mut problems) = yaml::parse(text);
    let Some(root) = root else {
        let settings = problems.is_empty().then(Settings::default);
        place_lines(text, &mut problems);
        return Checked { settings, problems };
    };
    let reader = Reader::new(&root);
    // Large lists are read item by item, so that one bad item costs no repetition of the others.
    let (clusters, in_part) = apart::<Cluster>(&reader, &root, "clusters");
    let (routes, _) = apart::<Route>(&reader, &root, "routes");
    let mut settings = reader.read::<Settings>(&root).unwrap_or_default();

    let mut findings = Findings::default();
    for (path, message) in settings.problems() {
        // Where the value could not be read, the default in its place is no mistake of the user's.
        if !root.find(path).is_some_and(|node| reader.is_bad(node)) {
            findings.error(path.to_owned(), message);
        }
    }
    let before = findings.problems.len();
    settings.check(&mut findings);
    findings.keep(before, |path| {
        !root.find(path).is_some_and(|node| reader.is_bad(node))
    });
    check::cross(&clusters, &routes, &settings, &names(&root), &mut findings);
    for (index, cluster) in &in_part {
        let path = format!("clusters[{index}]");
        let mut found = Findings::default();
        check::one_cluster(cluster, &path, &settings, &mut found);
        let is_read = |p: &Problem| is_wholly_read(&reader, &root, &path, &p.path);
        findings
            .problems
            .extend(found.problems.into_iter().filter(is_read));
    }
    problems.extend(reader.into_problems());
    problems.extend(findings.problems.into_iter().map(|mut problem| {
        problem.at = Some(root.locate(&problem.path));
        problem
    }));
    let is_usable = !problems.iter().any(Problem::is_error);
    let in_order = |p: &Problem| p.at.map(|at| (at.line, at.column));
    let mut more = None;
    if problems.len() >= MAX_PROBLEMS {
        // Warnings are what is left out first.
        problems.sort_by_key(|p| (!p.is_error(), in_order(p)));
        problems.truncate(MAX_PROBLEMS);
        let text = "there may be more; correct these first, then look again";
        more = Some(Problem {
            severity: problems[0].severity,
            ..Problem::error(text.into())
        });
    }
    problems.sort_by_key(in_order);
    problems.extend(more);
    place_lines(text, &mut problems);
    settings.clusters = clusters.into_iter().flatten().collect();
    settings.routes = routes.into_iter().flatten().collect();
    Checked {
        settings: is_usable.then_some(settings),
        problems,
    }
}

/// A cluster's file of endpoints: a list of what stands under `endpoints` elsewhere.
///
/// # Errors
/// Every problem found.
pub fn parse_endpoints(text: &str) -> Result<Vec<Endpoint>, Vec<Problem>> {
    let (root, mut problems) = yaml::parse(text);
    let mut endpoints = Vec::new();
    if let Some(root) = &root {
        let reader = Reader::new(root);
        endpoints = reader.read(root).unwrap_or_default();
        problems.extend(reader.into_problems());
        if problems.is_empty() {
            let mut findings = Findings::default();
            check::endpoints(&endpoints, "", &mut findings);
            problems.extend(findings.problems.into_iter().filter(Problem::is_error).map(
                |mut problem| {
                    problem.at = Some(root.locate(&problem.path));
                    problem
                },
            ));
        }
    }
    place_lines(text, &mut problems);
    if problems.is_empty() {
        Ok(endpoints)
    } else {
        Err(problems)
    }
}

/// The items of the list `key`, in their places; none for one that has any problem. Beside them, by
/// their places, what could be read of those.
fn apart<'t, T: serde::Deserialize<'t>>(
    reader: &Reader<'t>,
    root: &'t Node<'t>,
    key: &str,
) -> (Vec<Option<T>>, Vec<(usize, T)>) {
    let (mut whole, mut in_part) = (Vec::new(), Vec::new());
    let Some((_, list)) = root.entry(key) else {
        return (whole, in_part);
    };
    let yaml::Value::List(items) = &list.value else {
        return (whole, in_part);
    };
    for (index, item) in items.iter().enumerate() {
        let value = reader.read(item);
        let is_bad = reader.is_bad(item);
        let (good, rest) = if is_bad { (None, value) } else { (value, None) };
        whole.push(good);
        in_part.extend(rest.map(|rest| (index, rest)));
    }
    reader.leave_out(list);
    (whole, in_part)
}

/// Whether the key of `item` that `path` leads through was read as it is written: of anything else,
/// what follows from it is no mistake of the user's.
fn is_wholly_read(reader: &Reader<'_>, root: &Node<'_>, item: &str, path: &str) -> bool {
    let Some(rest) = path.strip_prefix(item).and_then(|p| p.strip_prefix('.')) else {
        return false;
    };
    let key = rest.split(['.', '[']).next().unwrap_or_default();
    let node = root.find(&format!("{item}.{key}"));
    !node.is_some_and(|node| reader.is_bad(node))
}

/// Every cluster's name, those of clusters that cannot be read too: a route to one is no mistake.
fn names(root: &Node<'_>) -> Vec<Option<String>> {
    let clusters = root
        .entry("clusters")
        .map_or(&[][..], |(_, list)| list.items());
    let name = |cluster: &Node<'_>| match &cluster.entry("name")?.1.value {
        yaml::Value::Scalar { text, .. } => Some(text.to_string()),
        _ => None,
    };
    clusters.iter().map(name).collect()
}

/// Gives every problem the line that it stands on.
fn place_lines(text: &str, problems: &mut [Problem]) {
    if problems.is_empty() {
        return;
    }
    let lines: Vec<_> = text.lines().collect();
    for problem in problems {
        let line = problem.at.and_then(|at| lines.get(at.line as usize - 1));
        problem.line = line.map(|&line| line.into());
        problem.narrow();
    }
}

#[cfg(test)]
mod tests;
