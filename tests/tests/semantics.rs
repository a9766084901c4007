//! `docs/SEMANTICS.md` is held to what it says: every rule and every bound has tests that exist, every key and every counter
//! that it names is there, and the defaults are the server's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

use std::{collections::BTreeSet, fs, path::Path};

use ringpost_server::Config;

/// Stands in a rule's row instead of its tests.
const WAITS: &str = "**the log, not yet**";
/// The chapters of the design that the rules are from.
const CHAPTERS: [&str; 21] = [
    "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9", "3.10", "4.1", "4.2", "4.3", "4.4", "4.5",
    "4.6", "4.7", "10.1", "10.2", "10.3", "11.1",
];

fn read(path: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).ok()
}

fn semantics() -> String {
    read("docs/SEMANTICS.md").expect("docs/SEMANTICS.md")
}

/// The rows of the first table below a heading, as cells, without its head.
fn table<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let below = text.lines().skip_while(|line| *line != heading);
    let rows = below.skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let rows: Vec<_> = rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect();
    assert!(rows.len() > 2, "there is a table below `{heading}`");
    rows[2..].to_vec()
}

/// What stands in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// What is wrong with the name of a test, written as `path/of/the/file.rs::name`.
fn wrong_with(test: &str) -> Option<String> {
    let (path, name) = test.split_once("::")?;
    let Some(source) = read(path) else { return Some(format!("there is no file {path}")) };
    let lines: Vec<_> = source.lines().map(str::trim_start).collect();
    let declares = |line: &&str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ")
            .and_then(|line| line.strip_prefix(name))
            .is_some_and(|it| it.starts_with('('))
    };
    let Some(at) = lines.iter().position(declares) else { return Some(format!("{path} has no fn {name}")) };
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let is_test = |line: &&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    if above.copied().any(|line| is_test(&line)) { None } else { Some(format!("{test} is no test")) }
}

/// What is wrong with the cell that names the tests of a rule or of a bound.
fn wrong_with_proof(cell: &str, sim_rules: &str) -> Vec<String> {
    let (tests, rules): (Vec<_>, Vec<_>) = quoted(cell).partition(|name| name.contains("::"));
    let unknown = rules.into_iter().filter(|rule| !sim_rules.contains(&format!("    {rule},\n")));
    let mut wrong: Vec<_> = unknown.map(|rule| format!("the simulation has no rule {rule}")).collect();
    wrong.extend(tests.iter().filter_map(|test| wrong_with(test)));
    if tests.is_empty() && !cell.contains(WAITS) {
        wrong.push("it names no test, and does not wait for the log".into());
    }
    wrong
}

/// What is wrong with the table of rules.
fn wrong_with_rules(text: &str) -> Vec<String> {
    let sim_rules = read("tests/src/sim/rules.rs").expect("the simulation's rules");
    let mut wrong = Vec::new();
    let mut numbers = Vec::new();
    for row in table(text, "## 3 Each rule, and its tests") {
        let [number, rule, proof] = row[..] else {
            wrong.push(format!("{row:?}: not three cells"));
            continue;
        };
        numbers.push(number);
        wrong.extend(
            wrong_with_proof(proof, &sim_rules).into_iter().map(|it| format!("{number}, \"{rule}\": {it}")),
        );
    }
    for chapter in CHAPTERS {
        let lettered = numbers.iter().filter_map(|number| number.strip_prefix(chapter));
        let letters: String = lettered.filter(|letter| !letter.starts_with(char::is_numeric)).collect();
        if letters.is_empty() || !"abcdefghijklmnopqrstuvwxyz".starts_with(&letters) {
            wrong.push(format!("{chapter}: the rules are lettered `{letters}`, with gaps or twice"));
        }
    }
    let chapter = |number: &str| number.trim_end_matches(char::is_alphabetic).to_owned();
    let strange = numbers.iter().filter(|number| !CHAPTERS.contains(&chapter(number).as_str()));
    wrong.extend(strange.map(|number| format!("{number}: there is no such chapter")));
    wrong
}

/// Every rule has a test that exists, or waits for the log; none is missing in the middle.
#[test]
fn every_rule_has_a_test() {
    let wrong = wrong_with_rules(&semantics());
    assert!(wrong.is_empty(), "docs/SEMANTICS.md, table of rules:\n{}", wrong.join("\n"));
}

/// The check finds what it is for: a test that is gone, one that is none, a rule without any, and a rule that is gone.
#[test]
fn the_check_finds_what_is_wrong() {
    let text = semantics();
    let sound = "`broker/src/tests.rs::least_busy`";
    assert!(text.contains(sound));
    let broken_with = |replacement: &str| wrong_with_rules(&text.replace(sound, replacement)).join("\n");
    assert_eq!(broken_with(sound), "");
    for (replacement, expected) in [
        ("`broker/src/tests.rs::most_busy`", "broker/src/tests.rs has no fn most_busy"),
        ("`broker/src/tests.rs::least`", "broker/src/tests.rs has no fn least"),
        ("`broker/src/nothing.rs::least_busy`", "there is no file broker/src/nothing.rs"),
        ("`broker/src/tests.rs::broadcast`", "broker/src/tests.rs::broadcast is no test"),
        ("`broker/src/tests.rs::least_busy` (`Luck`)", "the simulation has no rule Luck"),
    ] {
        let wrong = broken_with(replacement);
        assert!(wrong.starts_with("3.2b, ") && wrong.ends_with(expected), "{replacement}: {wrong}");
    }
    let without = |wanted: &str| {
        let kept = text.lines().filter(|line| !line.starts_with(&format!("| {wanted} ")));
        wrong_with_rules(&kept.collect::<Vec<_>>().join("\n")).join("\n")
    };
    assert!(without("3.2b").starts_with("3.2: the rules are lettered `acdef"), "{}", without("3.2b"));
    let row = text.lines().find(|line| line.starts_with("| 3.8d ")).unwrap();
    let bare = text.replace(row, "| 3.8d | … visible in the stats | somewhere |");
    assert_eq!(
        wrong_with_rules(&bare),
        ["3.8d, \"… visible in the stats\": it names no test, and does not wait for the log"]
    );
}

/// Every link within the document leads to one of its headings.
#[test]
fn links_lead_somewhere() {
    let text = semantics();
    let slug = |heading: &str| -> String {
        let kept = heading.trim_start_matches('#').trim().chars();
        let kept = kept.filter(|it| it.is_alphanumeric() || " -_".contains(*it));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let headings: BTreeSet<_> = text.lines().filter(|line| line.starts_with('#')).map(slug).collect();
    let links: Vec<_> = text.split("](#").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(links.len() > 5, "{links:?}");
    let broken: Vec<_> = links.into_iter().filter(|link| !headings.contains(*link)).collect();
    assert!(broken.is_empty(), "{broken:?}");
}

/// The names of all keys of the server's configuration: what is said to whoever names another one.
fn keys() -> BTreeSet<String> {
    let error = Config::from_toml_text("no-such-key = 1").unwrap_err().to_string();
    let (_, expected) = error.split_once("expected one of").expect("the error names what is expected");
    quoted(expected).map(str::to_owned).collect()
}

/// Every bound has a test that exists, a key that exists unless it is fixed, and counters that are shown.
#[test]
fn every_bound_is_there() {
    let (keys, sim_rules) = (keys(), read("tests/src/sim/rules.rs").unwrap());
    let shown = read("broker/src/control/stats.rs").unwrap();
    let broker = ringpost_broker::Broker::new(ringpost_broker::Config::default());
    let counters: BTreeSet<_> = broker.counters().iter().map(|(name, _)| name).collect();
    let text = semantics();
    let mut wrong = Vec::new();
    for row in table(&text, "## 2 Bounds") {
        let [bound, key, _, counted, proof] = row[..] else { panic!("{row:?}: not five cells") };
        let mut complain = |what: String| wrong.push(format!("{bound}: {what}"));
        let known = |name: &str| counters.contains(name) || shown.contains(&format!("(\"{name}\","));
        quoted(key).filter(|key| !keys.contains(*key)).for_each(|key| complain(format!("no key {key}")));
        if quoted(key).next().is_none() && !key.starts_with("fixed") && key != "its concurrency" {
            complain("neither a key nor fixed".into());
        }
        quoted(counted).filter(|name| !known(name)).for_each(|name| complain(format!("no counter {name}")));
        if quoted(counted).next().is_none() {
            complain("it is not counted".into());
        }
        wrong_with_proof(proof, &sim_rules).into_iter().for_each(complain);
    }
    assert!(wrong.is_empty(), "docs/SEMANTICS.md, table of bounds:\n{}", wrong.join("\n"));
}

/// The defaults that are told are the server's, and none is left out.
#[test]
fn the_defaults_are_true() {
    let text = semantics();
    let rows = table(&text, "### 1.12 Defaults");
    let told: BTreeSet<_> = rows.iter().flat_map(|row| quoted(row[0])).map(str::to_owned).collect();
    assert_eq!(told, keys());
    let value = |cell: &str| cell.strip_prefix('`')?.strip_suffix('`').map(str::to_owned);
    let settings: Vec<_> = rows
        .iter()
        .filter_map(|row| Some(format!("{} = {}", row[0].trim_matches('`'), value(row[1])?)))
        .collect();
    assert_eq!(
        settings.len(),
        rows.len() - 3,
        "all but max-connections, data-dir and queue-memory, which have no fixed one"
    );
    assert_eq!(Config::from_toml_text(&settings.join("\n")).unwrap(), Config::default());
}
