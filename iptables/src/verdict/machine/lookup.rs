//! Sets and maps.

use super::{Action, Break, Machine, REGISTERS, show};
use crate::ruleset::{Data, Element, Verdict};

impl Machine<'_, '_> {
    pub(super) fn lookup(
        &mut self,
        name: &str,
        from: usize,
        to: Option<usize>,
        is_negated: bool,
    ) -> Result<Action, Break> {
        let Some(set) = self.table.sets.get(name) else {
            self.doubt(format!("set {name}, which could not be read"));
            return Ok(Action::Next);
        };
        let length: usize = match set.fields.as_slice() {
            [only] => *only,
            fields => fields.iter().map(|f| f.next_multiple_of(4)).sum(),
        };
        let title = if set.is_anonymous {
            "the rule's list".to_owned()
        } else {
            format!("set {name}")
        };
        let end = (from + length).min(REGISTERS);
        match self.known(from, length) {
            Ok(key) => {
                let found = set.find(&key).cloned();
                if found.is_some() == is_negated {
                    let label = self.label[from / 4];
                    let word = if is_negated { "is" } else { "is not" };
                    let key = show(label, &key);
                    return Err(Break(format!("{label} {key} {word} in {title}")));
                }
                match found {
                    Some(element) => Ok(self.found(&element, to)),
                    None => Ok(Action::Next),
                }
            }
            Err(reason) => {
                let unknown: Vec<bool> = (from..end)
                    .map(|at| self.unknown[at / 4].is_some())
                    .collect();
                let key = self.bytes[from..end].to_vec();
                let candidates: Vec<Element> = set.candidates(&key, &unknown).cloned().collect();
                if candidates.is_empty() {
                    return if is_negated {
                        Ok(Action::Next)
                    } else {
                        Err(Break(format!("nothing in {title} fits")))
                    };
                }
                self.doubt(format!("{reason}, looked up in {title}"));
                let verdicts: Vec<Verdict> = candidates
                    .iter()
                    .filter_map(|e| match &e.data {
                        Some(Data::Verdict(verdict)) => Some(verdict.clone()),
                        _ => None,
                    })
                    .fold(Vec::new(), |mut all, verdict| {
                        if !all.contains(&verdict) {
                            all.push(verdict);
                        }
                        all
                    });
                if let Some(to) = to.filter(|_| verdicts.is_empty()) {
                    self.put(to, 16, Err(reason.clone()), "");
                }
                if verdicts.is_empty() {
                    Ok(Action::Next)
                } else {
                    Ok(Action::OneOf(verdicts, reason.to_string()))
                }
            }
        }
    }

    fn found(&mut self, element: &Element, to: Option<usize>) -> Action {
        if let Some(name) = &element.condition {
            self.doubt(format!("`{name}` of an element"));
        }
        match (&element.data, to) {
            (Some(Data::Verdict(Verdict::Continue)), _) => Action::Next,
            (Some(Data::Verdict(verdict)), _) => Action::Verdict(verdict.clone()),
            (Some(Data::Value(value)), Some(to)) => {
                self.put(to, value.len(), Ok(value.clone()), "");
                Action::Next
            }
            _ => Action::Next,
        }
    }
}
