//! Sets and maps of nftables, and what is in them.

use std::collections::HashMap;

use super::Verdict;

#[derive(Clone, Debug, Default)]
pub struct Set {
    pub name: String,
    pub is_anonymous: bool,
    pub is_interval: bool,
    pub is_map: bool,
    /// nft's number of the key's data type; a concatenation holds one in each six bits.
    pub key_type: u32,
    /// Bytes of each field of a concatenation; a single one otherwise.
    pub fields: Vec<usize>,
    pub elements: Vec<Element>,
    /// Set when the kernel would not tell all of them.
    pub unseen: Option<String>,
    pub(super) exact: HashMap<Vec<u8>, usize>,
    /// For intervals of one field: sorted by key, an end before a start of the same key.
    pub(super) sorted: Vec<usize>,
    pub(super) catch_all: Option<usize>,
}

#[derive(Clone, Debug, Default)]
pub struct Element {
    pub key: Vec<u8>,
    /// The last key of the interval, where that is told in the same element.
    pub key_end: Option<Vec<u8>>,
    pub data: Option<Data>,
    /// Ends the interval that the element before it began.
    pub is_end: bool,
    pub is_catch_all: bool,
    /// A limit or quota of its own, which decides too.
    pub condition: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Value(Vec<u8>),
    Verdict(Verdict),
}

impl Set {
    /// To be called once all elements are there.
    pub(crate) fn index(&mut self) {
        self.catch_all = self.elements.iter().position(|e| e.is_catch_all);
        if !self.is_interval {
            let keys = self.elements.iter().enumerate();
            self.exact = keys
                .filter(|(_, e)| !e.is_catch_all)
                .map(|(n, e)| (e.key.clone(), n))
                .collect();
        } else if !self.has_ranges() {
            self.sorted = (0..self.elements.len())
                .filter(|n| !self.elements[*n].is_catch_all)
                .collect();
            let elements = &self.elements;
            self.sorted
                .sort_by(|a, b| order(&elements[*a]).cmp(&order(&elements[*b])));
        }
    }

    /// The element that `key` finds.
    pub fn find(&self, key: &[u8]) -> Option<&Element> {
        let found = if !self.is_interval {
            self.exact.get(key).copied()
        } else if self.has_ranges() {
            self.elements.iter().position(|e| self.covers(e, key, &[]))
        } else {
            let after = self
                .sorted
                .partition_point(|n| self.elements[*n].key.as_slice() <= key);
            after
                .checked_sub(1)
                .map(|place| self.sorted[place])
                .filter(|n| !self.elements[*n].is_end)
        };
        found.or(self.catch_all).map(|n| &self.elements[n])
    }

    /// The elements that `key` may find when its bytes marked `unknown` could be anything.
    pub fn candidates<'a>(
        &'a self,
        key: &'a [u8],
        unknown: &'a [bool],
    ) -> impl Iterator<Item = &'a Element> {
        let is_single_interval = self.is_interval && !self.has_ranges();
        self.elements.iter().filter(move |e| {
            !e.is_end && (e.is_catch_all || is_single_interval || self.covers(e, key, unknown))
        })
    }

    fn has_ranges(&self) -> bool {
        self.fields.len() > 1 || self.elements.iter().any(|e| e.key_end.is_some())
    }

    /// Whether each field of `key` lies within the element's; a field with an unknown byte does.
    fn covers(&self, element: &Element, key: &[u8], unknown: &[bool]) -> bool {
        if element.is_catch_all {
            return false;
        }
        let last = element.key_end.as_ref().unwrap_or(&element.key);
        let mut start = 0;
        for &length in &self.fields {
            let field = start..start + length;
            // Fields of a concatenation begin at a register each.
            start += length.next_multiple_of(4);
            if unknown
                .get(field.clone())
                .is_some_and(|u| u.contains(&true))
            {
                continue;
            }
            let (Some(value), Some(low), Some(high)) = (
                key.get(field.clone()),
                element.key.get(field.clone()),
                last.get(field),
            ) else {
                return false;
            };
            if value < low || value > high {
                return false;
            }
        }
        true
    }
}

fn order(element: &Element) -> (&[u8], bool) {
    (&element.key, !element.is_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(key: &[u8], is_end: bool) -> Element {
        Element {
            key: key.into(),
            is_end,
            ..Element::default()
        }
    }

    #[test]
    fn an_interval_ends_before_its_end_and_the_next_may_begin_there() {
        let mut set = Set {
            is_interval: true,
            fields: vec![2],
            elements: vec![
                element(&[0, 0], true),
                element(&[0, 10], false),
                element(&[0, 20], true),
                element(&[0, 20], false),
                element(&[0, 30], true),
            ],
            ..Set::default()
        };
        set.index();
        let is_in = |n: u8| set.find(&[0, n]).is_some();
        assert_eq!(
            [9, 10, 19, 20, 29, 30].map(is_in),
            [false, true, true, true, true, false]
        );
    }

    #[test]
    fn each_field_of_a_concatenation_has_its_own_interval() {
        let mut set = Set {
            is_interval: true,
            fields: vec![4, 2],
            elements: vec![Element {
                key: vec![10, 0, 0, 0, 0, 80, 0, 0],
                key_end: Some(vec![10, 0, 0, 9, 0, 90, 0, 0]),
                ..Element::default()
            }],
            ..Set::default()
        };
        set.index();
        assert!(set.find(&[10, 0, 0, 5, 0, 85, 0, 0]).is_some());
        assert!(set.find(&[10, 0, 0, 5, 0, 91, 0, 0]).is_none());
        let unknown = [false, false, false, false, true, true, false, false];
        assert_eq!(
            set.candidates(&[10, 0, 0, 5, 0, 0, 0, 0], &unknown).count(),
            1
        );
        assert_eq!(
            set.candidates(&[11, 0, 0, 5, 0, 0, 0, 0], &unknown).count(),
            0
        );
    }
}
