//! Which policy holds for a container.

use std::{fmt, sync::Arc};

use globset::{Glob, GlobMatcher};

use super::{Matcher, Policies, Policy, Subject};

/// Patterns of which one must match. `*` is any text, also with slashes; `?` any character; `[ab]` and `{one,two}` are
/// choices.
#[derive(Clone, Debug)]
pub struct Globs(Vec<GlobMatcher>);

/// Two policies of a file that cannot both be meant; their indices in [`Policies::policies`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// They have the same name.
    SameName {
        /// The first.
        earlier: usize,
        /// The second.
        later: usize,
    },
    /// What the later one matches, the earlier one does too: the later one can never hold.
    Unreachable {
        /// The one that always holds instead.
        earlier: usize,
        /// The one that never holds.
        later: usize,
    },
}

impl Globs {
    /// Those of these patterns.
    #[must_use]
    pub fn new(patterns: impl IntoIterator<Item = Glob>) -> Self {
        Self(patterns.into_iter().map(|glob| glob.compile_matcher()).collect())
    }

    /// Whether one of them matches the name. None matches what is unknown, which is empty.
    #[must_use]
    pub fn is_match(&self, name: &str) -> bool {
        !name.is_empty() && self.0.iter().any(|glob| glob.is_match(name))
    }

    /// Whether one of them matches every name.
    #[must_use]
    pub fn match_all(&self) -> bool {
        self.patterns().any(|pattern| pattern.bytes().all(|byte| byte == b'*'))
    }

    fn patterns(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|glob| glob.glob().glob())
    }

    /// Whether they surely match whatever the others do.
    fn cover(&self, others: &Self) -> bool {
        others.patterns().all(|other| self.0.iter().any(|glob| covers(glob, other)))
    }
}

/// `load-*` covers `load-*-eu`: where a pattern's only wildcard is `*`, it matches the other's text as if that were a
/// name only if each wildcard of the other meets one of its own.
fn covers(glob: &GlobMatcher, other: &str) -> bool {
    let pattern = glob.glob().glob();
    let has = |text: &str, special: &[char]| text.contains(special);
    pattern == other
        || !has(pattern, &['?', '[', ']', '{', '}', '\\'])
            && !has(other, &['[', ']', '{', '}', '\\'])
            && glob.is_match(other)
}

impl fmt::Display for Globs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.patterns().collect::<Vec<_>>().join(", "))
    }
}

impl Matcher {
    /// Whether all that is said matches.
    #[must_use]
    pub fn is_match(&self, subject: &Subject) -> bool {
        let Self { namespaces, pods, containers, labels } = self;
        let matches = |globs: &Option<Globs>, name: &str| globs.as_ref().is_none_or(|globs| globs.is_match(name));
        matches(namespaces, &subject.names.namespace)
            && matches(pods, &subject.names.pod)
            && matches(containers, &subject.names.container)
            && labels.iter().all(|(key, value)| subject.labels.get(key) == Some(value))
    }

    /// Whether it surely matches whatever the other does.
    fn covers(&self, other: &Self) -> bool {
        let Self { namespaces, pods, containers, labels } = self;
        let covers = |globs: &Option<Globs>, others: &Option<Globs>| match (globs, others) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(globs), Some(others)) => globs.cover(others),
        };
        covers(namespaces, &other.namespaces)
            && covers(pods, &other.pods)
            && covers(containers, &other.containers)
            && labels.iter().all(|(key, value)| other.labels.get(key) == Some(value))
    }
}

impl Policies {
    /// The policy that holds: the first that matches. `None`: nothing limits this container.
    #[must_use]
    pub fn of(&self, subject: &Subject) -> Option<&Arc<Policy>> {
        self.policies.iter().find(|policy| policy.matcher.is_match(subject))
    }

    /// The first two policies that cannot both be meant. A policy that only several others together hide is not found.
    #[must_use]
    pub fn conflict(&self) -> Option<Conflict> {
        let pairs = (0..self.policies.len()).flat_map(|later| (0..later).map(move |earlier| (earlier, later)));
        pairs.into_iter().find_map(|(earlier, later)| {
            let (a, b) = (&self.policies[earlier], &self.policies[later]);
            if a.name == b.name {
                return Some(Conflict::SameName { earlier, later });
            }
            a.matcher.covers(&b.matcher).then_some(Conflict::Unreachable { earlier, later })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{identity::Labels, policy::Count};

    fn globs(patterns: &str) -> Option<Globs> {
        let compiled = patterns.split_whitespace().map(|pattern| Glob::new(pattern).expect("a pattern"));
        (patterns != "-").then(|| Globs::new(compiled))
    }

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// Namespaces, pods, containers (`-`: not said) and labels.
    fn matcher([namespaces, pods, containers, labelled]: [&str; 4]) -> Matcher {
        Matcher {
            namespaces: globs(namespaces),
            pods: globs(pods),
            containers: globs(containers),
            labels: labels(labelled),
        }
    }

    fn subject([namespace, pod, container, labelled]: [&str; 4]) -> Subject {
        let [namespace, pod, container] = [namespace, pod, container].map(ToOwned::to_owned);
        let names = Labels { namespace, pod, container };
        Subject { names, labels: labels(labelled), ..Subject::default() }
    }

    fn policy(name: &str, matcher: Matcher) -> Arc<Policy> {
        Arc::new(Policy {
            name: name.to_owned(),
            matcher,
            count: Count::default(),
            egress: super::super::EgressLimits::default(),
            ingress: None,
            on_breach: super::super::OnBreach::default(),
        })
    }

    #[test]
    fn all_that_is_said_must_match() {
        let loader = subject(["batch-1", "load-7", "main", "app=loader tier=back"]);
        let unknown = subject(["", "", "", ""]);
        let docker = subject(["", "", "system.slice/docker-1f.scope", ""]);
        let cases = [
            (["-", "-", "-", ""], [true, true, true]),
            (["batch-*", "-", "-", ""], [true, false, false]),
            (["batch", "-", "-", ""], [false, false, false]),
            (["batch-?", "load-[0-9]", "{main,side}", "app=loader"], [true, false, false]),
            (["prod batch-*", "-", "-", ""], [true, false, false]),
            (["batch-*", "-", "side", ""], [false, false, false]),
            (["Batch-*", "-", "-", ""], [false, false, false]),
            (["*", "-", "-", ""], [true, false, false]),
            (["-", "-", "*", ""], [true, false, true]),
            (["-", "-", "system.slice/*", ""], [false, false, true]),
            (["-", "-", "*docker-*", ""], [false, false, true]),
            (["-", "-", "-", "app=loader tier=back"], [true, false, false]),
            (["-", "-", "-", "app=loader tier=front"], [false, false, false]),
            (["-", "-", "-", "app="], [false, false, false]),
        ];
        for (said, expected) in cases {
            let found = [&loader, &unknown, &docker].map(|subject| matcher(said).is_match(subject));
            assert_eq!(found, expected, "{said:?}");
        }
    }

    #[test]
    fn the_first_that_matches_holds() {
        let policies = Policies {
            policies: vec![
                policy("eu", matcher(["*-eu", "-", "-", ""])),
                policy("batch", matcher(["batch-*", "-", "-", ""])),
            ],
            ..Policies::default()
        };
        let holds = |namespace| policies.of(&subject([namespace, "p", "c", ""])).map(|policy| policy.name.as_str());
        assert_eq!(holds("batch-eu"), Some("eu"));
        assert_eq!(holds("batch-us"), Some("batch"));
        assert_eq!(holds("prod"), None);
    }

    #[test]
    fn a_policy_that_can_never_hold_is_found() {
        let all = ["-", "-", "-", ""];
        let cases = [
            (all, all, true),
            (all, ["a", "b", "c", "d=e"], true),
            (["a", "-", "-", ""], all, false),
            (["*", "-", "-", ""], all, false), // Not those whose namespace is unknown.
            (["*", "-", "-", ""], ["a-*", "-", "-", ""], true),
            (["**", "-", "-", ""], ["[ab]", "-", "-", ""], false), // Not looked into.
            (["a-*", "-", "-", ""], ["a-b", "-", "-", ""], true),
            (["a-*", "-", "-", ""], ["a-b-*", "-", "-", ""], true),
            (["a-*", "-", "-", ""], ["a-?", "-", "-", ""], true),
            (["a-?", "-", "-", ""], ["a-*", "-", "-", ""], false),
            (["a-*", "-", "-", ""], ["*", "-", "-", ""], false),
            (["a-*", "-", "-", ""], ["b-*", "-", "-", ""], false),
            (["*-b", "-", "-", ""], ["a-*", "-", "-", ""], false),
            (["*a*", "-", "-", ""], ["[ab]", "-", "-", ""], false),
            (["[ab]", "-", "-", ""], ["[ab]", "-", "-", ""], true),
            (["a b", "-", "-", ""], ["b a", "-", "-", ""], true),
            (["a b", "-", "-", ""], ["a b c", "-", "-", ""], false),
            (["-", "-", "-", "app=x"], ["a", "-", "-", "app=x tier=y"], true),
            (["-", "-", "-", "app=x"], ["a", "-", "-", "app=y"], false),
            (["-", "-", "-", "app=x"], all, false),
            (["a", "x", "-", ""], ["a", "-", "-", ""], false),
        ];
        for (earlier, later, unreachable) in cases {
            let policies = vec![policy("one", matcher(earlier)), policy("two", matcher(later))];
            let found = Policies { policies, ..Policies::default() }.conflict();
            let expected = unreachable.then_some(Conflict::Unreachable { earlier: 0, later: 1 });
            assert_eq!(found, expected, "{earlier:?} before {later:?}");
        }
    }

    #[test]
    fn a_name_may_be_there_once() {
        let named = |name: &str, namespace| policy(name, matcher([namespace, "-", "-", ""]));
        let policies =
            Policies { policies: vec![named("a", "x"), named("b", "y"), named("a", "z")], ..Policies::default() };
        assert_eq!(policies.conflict(), Some(Conflict::SameName { earlier: 0, later: 2 }));
    }
}
