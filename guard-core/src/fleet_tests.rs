use super::*;

const NAME: &str = "egress-guard/egress-guard";

fn map(kill_switch: Option<&str>) -> Word {
    Word::Present(Map { config: None, kill_switch: kill_switch.map(Into::into), resource_version: "7".into() })
}

fn ruled(contact: &Contact, word: &Word, file: Option<&Mounted>) -> Ruling {
    let path = Path::new("/etc/egress-guard/kill-switch");
    rule(&World { name: NAME, word, contact, path, file })
}

fn denied() -> Contact {
    Contact::Denied("forbidden".into())
}

/// What each answer means, whatever was before: engaged, left as it was, released.
const ON: &str = "engaged";
const STAYS: &str = "as it was";
const FREE: &str = "released";

fn short(switch: &Switch) -> &'static str {
    match switch {
        Switch::Engaged(_) => ON,
        Switch::AsItWas => STAYS,
        Switch::Released => FREE,
    }
}

#[test]
fn while_the_api_server_is_heard_its_word_alone_counts() {
    let cases = [
        (map(Some("off")), FREE),
        (map(Some("on")), ON),
        (map(None), ON),
        (map(Some("")), ON),
        (map(Some("OFF")), ON),
        (map(Some("off ")), ON),
        (map(Some("off\n")), ON),
        (map(Some("false")), ON),
        (map(Some("\u{fffd}")), ON),
        (Word::Missing, STAYS),
    ];
    for (word, expected) in cases {
        for text in [None, Some("on"), Some("off")] {
            for newer in [true, false] {
                let file = Mounted { text: text.map(Into::into), newer };
                for file in [None, Some(&file)] {
                    let Ruling { switch, nothing } = ruled(&Contact::Fresh, &word, file);
                    assert_eq!(short(&switch), expected, "{word:?} with {file:?}");
                    assert_eq!(nothing.is_some(), word == Word::Missing, "{word:?}: {nothing:?}");
                }
            }
        }
    }
}

#[test]
fn nobody_is_released_because_the_api_server_went_away() {
    let file = |text: &str, newer| Some(Mounted { text: Some(text.into()), newer });
    let unreadable = Some(Mounted { text: None, newer: true });
    let cases = [
        // Its last word, or the file, engages.
        (map(Some("on")), None, ON),
        (map(Some("on")), file("off", true), ON),
        (map(None), file("off", true), ON),
        (map(Some("off")), file("on", true), ON),
        (map(Some("off")), file("on", false), ON),
        (map(Some("off")), file("", true), ON),
        (map(Some("off")), unreadable.clone(), ON),
        (map(Some("off")), file("off", true), FREE),
        // It was engaged after its last word, so by the file.
        (map(Some("off")), file("off", false), STAYS),
        (map(Some("off")), None, STAYS),
        // An agent that starts without an API server.
        (Word::Unknown, None, STAYS),
        (Word::Unknown, file("on", false), ON),
        (Word::Unknown, file("on\n", false), ON),
        (Word::Unknown, unreadable.clone(), ON),
        (Word::Unknown, file("off", false), STAYS),
        (Word::Unknown, file("off", true), FREE),
        (Word::Unknown, file("off\n", true), FREE),
        (Word::Unknown, file("off\n\n", true), ON),
        // The mounted copy of a map that was deleted.
        (Word::Missing, None, STAYS),
        (Word::Missing, file("on", false), ON),
        (Word::Missing, file("off", false), STAYS),
    ];
    for (word, file, expected) in cases {
        for contact in [Contact::Away, denied()] {
            let Ruling { switch, nothing } = ruled(&contact, &word, file.as_ref());
            assert_eq!(short(&switch), expected, "{contact:?}, {word:?} with {file:?}");
            assert!(nothing.is_some(), "{contact:?}, {word:?}: who evicts must know the fleet's kill switch");
        }
    }
}

#[test]
fn without_an_api_server_a_file_is_all_there_is() {
    let cases = [
        (None, STAYS),
        (Some(Mounted { text: Some("on".into()), newer: false }), ON),
        (Some(Mounted { text: Some("off".into()), newer: true }), FREE),
    ];
    for (file, expected) in cases {
        let Ruling { switch, nothing } = ruled(&Contact::Nobody, &Word::Unknown, file.as_ref());
        assert_eq!((short(&switch), nothing), (expected, None), "{file:?}");
    }
}

#[test]
fn who_engaged_it_is_said_with_what_to_do() {
    let who = |contact: &Contact, word: &Word, file: Option<&Mounted>| match ruled(contact, word, file).switch {
        Switch::Engaged(who) => who,
        other => panic!("{other:?}"),
    };
    let fresh = |value| who(&Contact::Fresh, &map(value), None);
    assert_eq!(fresh(Some("on")), "kill-switch: \"on\" in ConfigMap egress-guard/egress-guard, resourceVersion 7");
    let missing = "no kill-switch in ConfigMap egress-guard/egress-guard, resourceVersion 7: \"off\" releases it";
    assert_eq!(fresh(None), missing);
    let long = fresh(Some(&"ü\n".repeat(50)));
    assert!(long.starts_with(r#"kill-switch: "ü\nü\n"#) && long.contains("\"... in ConfigMap"), "{long}");
    assert!(long.len() <= guard_common::WHO, "{} bytes do not fit", long.len());
    let on = Mounted { text: Some("on\n".into()), newer: true };
    let file = who(&Contact::Away, &Word::Unknown, Some(&on));
    assert_eq!(file, r#"kill-switch: "on\n" in /etc/egress-guard/kill-switch"#);
    let unreadable = Mounted { text: None, newer: true };
    let file = who(&Contact::Nobody, &Word::Unknown, Some(&unreadable));
    assert_eq!(file, "/etc/egress-guard/kill-switch cannot be read");
}

#[test]
fn why_nothing_is_evicted_is_said_with_what_to_do() {
    let cases = [
        (
            Contact::Fresh,
            Word::Missing,
            "egress-guard/egress-guard is missing: make it, with the key kill-switch: \"off\"",
        ),
        (denied(), map(Some("off")), "may not be read: grant the agent get, list and watch of it (forbidden)"),
        (Contact::Away, Word::Unknown, "has not told of the ConfigMap egress-guard/egress-guard"),
        (Contact::Away, map(Some("off")), "does not tell of the ConfigMap egress-guard/egress-guard"),
    ];
    for (contact, word, expected) in cases {
        let why = ruled(&contact, &word, None).nothing.expect("a reason");
        assert!(why.contains(expected), "{why}");
    }
}
