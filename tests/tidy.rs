//! House rules that rustc and clippy do not know, checked by reading the source tree.
//!
//! Each rule is a plain function from source text to complaints, so that each also has a test on
//! made-up text that breaks it: a check that cannot fail is worth nothing. Complaints name file,
//! line and remedy. It reads text, not syntax trees: comments and strings are blanked first, and
//! what is left is regular enough. Circles between rooms need no rule of their own, since a room
//! may use only rooms strictly below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The floors from the ground up; a room uses only rooms of lower floors.
const FLOORS: [&[&str]; 13] = [
    &["limits", "memory"],
    &["clock", "error"],
    &["admission"],
    &["config"],
    &["wire"],
    &["telemetry"],
    &["eventlog"],
    &["upstream"],
    &["stream"],
    &["gateway"],
    &["server"],
    &["cli"],
    &["main"],
];

/// The simulated upstream stands apart: used by `cli` and `main`, using `limits` only.
const APART: &str = "sim";

const COLUMNS: usize = 120;
const FUNCTION_LINES: usize = 90;
const FILE_LINES: usize = 500;

/// Calls that are not made anywhere, and what to do instead.
const BANNED: [(&str, &str); 6] = [
    ("todo!", "finish it, or return an error"),
    ("unimplemented!", "finish it, or return an error"),
    ("dbg!", "remove it, or use tracing"),
    ("unbounded_channel", "use a bounded channel: nothing grows without a limit"),
    ("mpsc::unbounded", "use a bounded channel: nothing grows without a limit"),
    ("thread::sleep", "wait for the thing itself, with a deadline"),
];

const NAMES: [&str; 8] =
    ["util", "utils", "helper", "helpers", "common", "commons", "manager", "managers"];

/// One Rust file.
struct Source {
    /// Path from the repository's root, with slashes.
    path: String,
    text: String,
    /// `text` with the contents of comments, strings and characters blanked; same lines.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Source { path: path.to_owned(), text: text.to_owned(), code: blank(text) }
    }

    /// Path segments of the module below `src`: `["stream", "relay"]`, `["main"]`.
    fn module(&self) -> Vec<&str> {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let inside = inside.strip_suffix(".rs").unwrap_or(inside);
        inside.split('/').filter(|segment| *segment != "mod").collect()
    }

    fn complaint(&self, line: usize, text: &str) -> String {
        format!("{}:{line}: {text}", self.path)
    }
}

/// Replaces what is inside comments, string and character literals by spaces, newlines kept.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => find(bytes, at, b"\n"),
            b'/' if bytes[at..].starts_with(b"/*") => block_comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if at == 0 || !is_word(bytes[at - 1]) || b"bc".contains(&bytes[at - 1]) => {
                raw_string_end(bytes, at).unwrap_or(at + 1)
            }
            b'\'' => char_end(bytes, at).unwrap_or(at + 1),
            _ => at + 1,
        };
        if end > at + 1 {
            for b in &mut out[at..end] {
                if *b != b'\n' {
                    *b = b' ';
                }
            }
        }
        at = end;
    }
    String::from_utf8(out).expect("whole literals were replaced by ASCII")
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// Where `needle` begins at or after `from`; the end of the text if it does not.
fn find(bytes: &[u8], from: usize, needle: &[u8]) -> usize {
    let found = bytes[from..].windows(needle.len()).position(|window| window == needle);
    found.map_or(bytes.len(), |n| from + n)
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|b| **b == b'#').count();
    let open = start + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    Some((find(bytes, open + 1, &close) + close.len()).min(bytes.len()))
}

/// The end of a character literal; `None` for a lifetime.
fn char_end(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start + 1) == Some(&b'\\') {
        let end = find(bytes, start + 3, b"'");
        return (end < bytes.len()).then_some(end + 1);
    }
    let text = std::str::from_utf8(&bytes[start + 1..]).ok()?;
    let width = text.chars().next()?.len_utf8();
    (bytes.get(start + 1 + width) == Some(&b'\'')).then_some(start + width + 2)
}

fn line_at(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1
}

/// Every place where `word` stands as a whole word (what it begins and ends with permitting).
fn words(code: &str, word: &str) -> Vec<usize> {
    let bytes = code.as_bytes();
    let open = |n: usize| bytes.get(n).is_none_or(|b| !is_word(*b));
    let starts_word = is_word(word.as_bytes()[0]);
    let ends_word = is_word(word.as_bytes()[word.len() - 1]);
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(|at| !starts_word || *at == 0 || open(at - 1))
        .filter(|at| !ends_word || open(at + word.len()))
        .collect()
}

fn identifier(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.bytes().take_while(|b| is_word(*b)).count()]
}

/// The end of the bracket that opens at `at`: the index after its partner.
fn closing(code: &str, at: usize) -> usize {
    let mut depth = 0usize;
    for (n, b) in code.bytes().enumerate().skip(at) {
        match b {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return n + 1;
        }
    }
    code.len()
}

/// Byte ranges of items under `#[cfg(test)]` or `#[test]`.
fn test_ranges(code: &str) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    for mark in ["#[cfg(test)]", "#[test]", "#[cfg(all(test"] {
        for (at, _) in code.match_indices(mark) {
            let rest = &code[at + mark.len()..];
            let end = match rest.find(['{', ';']) {
                Some(n) if rest.as_bytes()[n] == b'{' => closing(code, at + mark.len() + n),
                Some(n) => at + mark.len() + n + 1,
                None => code.len(),
            };
            ranges.push((at, end));
        }
    }
    ranges
}

fn within(ranges: &[(usize, usize)], at: usize) -> bool {
    ranges.iter().any(|(start, end)| (*start..*end).contains(&at))
}

// Rule 1: imports go down only.

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn check_floors(source: &Source) -> Vec<String> {
    let module = source.module();
    let room = module[0];
    if room == "lib" {
        return Vec::new();
    }
    if room != APART && floor(room).is_none() {
        return vec![
            source.complaint(1, &format!("room `{room}` is on no floor; give it one in FLOORS")),
        ];
    }
    let mut complaints = Vec::new();
    for (at, used) in imports(&source.code, module.len()) {
        let allowed = match (room, used.as_str()) {
            (own, used) if own == used => true,
            (APART, used) => used == "limits",
            ("cli" | "main", APART) => true,
            (own, used) => floor(used).is_some_and(|used| Some(used) < floor(own)),
        };
        if !allowed {
            let text = format!(
                "`{room}` may not use `{used}`, which is not below it; move what they share down, \
                 or pass it in as an argument"
            );
            complaints.push(source.complaint(line_at(&source.code, at), &text));
        }
    }
    complaints
}

/// The rooms that a file names, in `use` lines and in paths, by `crate::` or by enough `super::`.
fn imports(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in words(code, "crate::") {
        if at > 0 && code.as_bytes()[at - 1] == b'$' {
            continue;
        }
        let rest = at + "crate::".len();
        if identifier(&code[rest..]).is_empty() {
            found.extend(group(code, rest).into_iter().map(|name| (at, name)));
        } else {
            found.push((at, identifier(&code[rest..]).to_owned()));
        }
    }
    let inline = inline_modules(code);
    for at in words(code, "super::") {
        if code[..at].ends_with("::") {
            continue;
        }
        let rest = code[at..].trim_start_matches("super::");
        let climbed = (code.len() - at - rest.len()) / "super::".len();
        if climbed
            < depth + inline.iter().filter(|(start, end)| (*start..*end).contains(&at)).count()
        {
            continue;
        }
        let named = identifier(rest).to_owned();
        let names =
            if named.is_empty() { group(code, code.len() - rest.len()) } else { vec![named] };
        found.extend(names.into_iter().map(|name| (at, name)));
    }
    found
}

/// Byte ranges of modules written out inside a file.
fn inline_modules(code: &str) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    for at in words(code, "mod") {
        let name = identifier(&code[at + 3..]);
        let Some(body) = body_start(code, at).filter(|_| !name.is_empty()) else { continue };
        ranges.push((body, closing(code, body)));
    }
    ranges
}

/// The first segments inside a group import: `{a::b, c::{d, e}}` is `a` and `c`.
fn group(code: &str, at: usize) -> Vec<String> {
    let Some(open) = code[at..].find(|c: char| !c.is_whitespace()).map(|n| at + n) else {
        return Vec::new();
    };
    if code.as_bytes()[open] != b'{' {
        return Vec::new();
    }
    let inside = &code[open + 1..closing(code, open) - 1];
    let (mut depth, mut names, mut start) = (0usize, Vec::new(), 0);
    for (n, b) in inside.bytes().chain([b',']).enumerate() {
        match b {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                names.push(identifier(&inside[start..n]).to_owned());
                start = n + 1;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

// Rules 2 and 3: every file says what it owns; no long lines.

fn check_opening(source: &Source) -> Vec<String> {
    if source.text.starts_with("//!") {
        return Vec::new();
    }
    vec![
        source.complaint(1, "begin with `//!`: what the file owns, what it refuses, its invariant"),
    ]
}

fn check_columns(source: &Source) -> Vec<String> {
    let long = source.text.lines().enumerate().filter(|(_, line)| line.chars().count() > COLUMNS);
    long.map(|(n, _)| source.complaint(n + 1, &format!("break the line: over {COLUMNS} columns")))
        .collect()
}

// Rule 4: functions and files fit a reader's head.

fn check_functions(source: &Source) -> Vec<String> {
    let code = &source.code;
    let mut complaints = Vec::new();
    for at in words(code, "fn") {
        let name = identifier(&code[at + 2..]);
        let Some(body) = body_start(code, at).filter(|_| !name.is_empty()) else { continue };
        let lines = line_at(code, closing(code, body) - 1) - line_at(code, at) + 1;
        if lines > FUNCTION_LINES {
            let text = format!("fn {name} has {lines} lines; split it below {FUNCTION_LINES}");
            complaints.push(source.complaint(line_at(code, at), &text));
        }
    }
    complaints
}

/// The brace that opens a function's body; `None` for a declaration without one.
fn body_start(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (n, b) in code.bytes().enumerate().skip(at) {
        match b {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'{' if depth == 0 => return Some(n),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

fn check_length(source: &Source) -> Vec<String> {
    let tests: BTreeSet<usize> = test_ranges(&source.code)
        .into_iter()
        .flat_map(|(start, end)| line_at(&source.code, start)..=line_at(&source.code, end - 1))
        .collect();
    let lines = source.text.lines().count() - tests.len().min(source.text.lines().count());
    if lines <= FILE_LINES {
        return Vec::new();
    }
    let text = format!("{lines} lines without tests; split the file below {FILE_LINES}");
    vec![source.complaint(1, &text)]
}

// Rule 5: what is not called, and what nothing is named.

fn check_banned(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for (call, remedy) in BANNED {
        for at in words(&source.code, call) {
            let text = format!("`{call}` is banned; {remedy}");
            complaints.push(source.complaint(line_at(&source.code, at), &text));
        }
    }
    complaints
}

fn check_unwrap(source: &Source) -> Vec<String> {
    let tests = test_ranges(&source.code);
    let calls = source.code.match_indices(".unwrap()").filter(|(at, _)| !within(&tests, *at));
    let text = "no `.unwrap()` outside tests; return an error, or `expect(\"the invariant\")`";
    calls.map(|(at, _)| source.complaint(line_at(&source.code, at), text)).collect()
}

fn check_name(source: &Source) -> Vec<String> {
    let segments = source.path.trim_end_matches(".rs").split(['/', '_', '-', '.']);
    let bad = segments.filter(|segment| NAMES.contains(segment));
    bad.map(|name| {
        source.complaint(1, &format!("`{name}` says nothing; name the noun that the file owns"))
    })
    .collect()
}

// Rule 6: no dead files.

/// The modules that a file declares in files of their own: name, whether only for tests, and the
/// path if an attribute gives it.
fn declared(source: &Source) -> Vec<(String, bool, Option<String>)> {
    let code = &source.code;
    let mut modules = Vec::new();
    for at in words(code, "mod") {
        let name = identifier(&code[at + 3..]);
        let after = code[at + 3..].trim_start().strip_prefix(name).unwrap_or_default();
        if name.is_empty() || !after.trim_start().starts_with(';') {
            continue;
        }
        let item = code[..at].rfind([';', '}']).map_or(0, |n| n + 1);
        let path = source.text[item..at].find("#[path = \"").and_then(|n| {
            let rest = &source.text[item + n + "#[path = \"".len()..at];
            rest.split('"').next().map(str::to_owned)
        });
        modules.push((name.to_owned(), within(&test_ranges(code), at), path));
    }
    modules
}

/// Every file of `src` that a `mod` leads to from a root, and whether it is for tests only.
fn reached(sources: &BTreeMap<String, Source>) -> BTreeMap<String, bool> {
    let is_root =
        |path: &str| path == "src/lib.rs" || path == "src/main.rs" || path.starts_with("src/bin/");
    let mut reached = BTreeMap::new();
    let mut open: Vec<(String, bool)> =
        sources.keys().filter(|path| is_root(path)).map(|path| (path.clone(), false)).collect();
    while let Some((path, test)) = open.pop() {
        let Some(source) = sources.get(&path) else { continue };
        if reached.get(&path).is_some_and(|only_test: &bool| !only_test || test) {
            continue;
        }
        reached.insert(path.clone(), test);
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let stem = path.trim_end_matches(".rs");
        let own = if is_root(&path) || stem.ends_with("/mod") { parent } else { stem };
        for (name, test_only, given) in declared(source) {
            let candidates = match given {
                Some(given) => vec![format!("{parent}/{given}")],
                None => vec![format!("{own}/{name}.rs"), format!("{own}/{name}/mod.rs")],
            };
            open.extend(candidates.into_iter().map(|path| (path, test || test_only)));
        }
    }
    reached
}

fn check_reached(sources: &BTreeMap<String, Source>) -> Vec<String> {
    let reached = reached(sources);
    let dead = sources.values().filter(|source| !reached.contains_key(&source.path));
    dead.map(|source| source.complaint(1, "no `mod` leads here; declare the module or delete it"))
        .collect()
}

// The tree itself.

/// Every Rust file below `folder` of the repository, by path.
fn tree(folder: &str) -> BTreeMap<String, Source> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut sources = BTreeMap::new();
    let mut open = vec![root.join(folder)];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("the tree can be read").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = open_source(&root, &path);
                sources.insert(source.path.clone(), source);
            }
        }
    }
    sources
}

fn open_source(root: &Path, path: &Path) -> Source {
    let text = fs::read_to_string(path).expect("sources are UTF-8");
    let inside = path.strip_prefix(root).expect("found below the root");
    Source::new(&inside.to_string_lossy().replace('\\', "/"), &text)
}

fn everything() -> BTreeMap<String, Source> {
    ["src", "tests", "benches", "load", "fuzz"].into_iter().flat_map(tree).collect()
}

/// Files of `src` that are compiled into the program.
fn shipped() -> Vec<Source> {
    let mut sources = tree("src");
    let reached = reached(&sources);
    sources.retain(|path, _| !reached.get(path).copied().unwrap_or(false));
    sources.into_values().collect()
}

/// Names of tests in a text: words in backticks with more underscores than others have; a path before them does not
/// matter, and three dots at their end stand for the rest.
fn tests_named(text: &str) -> Vec<&str> {
    let spans = text.split('`').skip(1).step_by(2);
    let names = spans.filter_map(|span| span.rsplit("::").next());
    names.filter(|name| name.matches('_').count() > 3).collect()
}

/// Tests that a text names and no source has.
fn check_tests_named(text: &str, sources: &BTreeMap<String, Source>) -> Vec<String> {
    let missing = |name: &&str| {
        let begins = format!("fn {}", name.trim_end_matches('…'));
        !sources.values().any(|source| source.text.contains(&begins))
    };
    let lost = tests_named(text).into_iter().filter(missing);
    lost.map(|name| format!("there is no test {name}; name the one that shows it now")).collect()
}

#[track_caller]
fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[track_caller]
fn assert_all<'s>(sources: impl IntoIterator<Item = &'s Source>, rule: fn(&Source) -> Vec<String>) {
    assert_none(sources.into_iter().flat_map(rule).collect());
}

#[test]
fn imports_go_down_only() {
    assert_all(tree("src").values(), check_floors);
}

#[test]
fn every_file_says_what_it_owns() {
    let all = everything();
    assert!(all.len() > 3, "the tree was found");
    assert_all(all.values(), check_opening);
}

#[test]
fn no_line_is_too_long() {
    assert_all(everything().values(), check_columns);
}

#[test]
fn no_function_is_too_long() {
    assert_all(tree("src").values(), check_functions);
}

#[test]
fn no_file_is_too_long() {
    assert_all(&shipped(), check_length);
}

#[test]
fn nothing_banned_is_called() {
    assert_all(tree("src").values(), check_banned);
    assert_all(&shipped(), check_unwrap);
}

#[test]
fn the_tests_that_the_documents_name_exist() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/RELIABILITY.md"));
    let text = text.expect("docs/RELIABILITY.md");
    assert!(tests_named(&text).len() > 10, "it names tests");
    let mut all = tree("src");
    all.extend(tree("tests"));
    assert_none(check_tests_named(&text, &all));
    let none = "`a_test_that_is_not_there`, `rooms::and_one_more_of_them…`, `no_test`";
    assert_eq!(check_tests_named(none, &all).len(), 2);
}

#[test]
fn names_mean_something() {
    assert_all(everything().values(), check_name);
}

#[test]
fn no_file_is_dead() {
    assert_none(check_reached(&tree("src")));
}

/// Each rule on text that breaks it, so that no rule can quietly stop working.
mod self_tests {
    use super::*;

    #[track_caller]
    fn complains(rule: fn(&Source) -> Vec<String>, path: &str, text: &str, expected: &[&str]) {
        let found = rule(&Source::new(path, text));
        assert_eq!(found.len(), expected.len(), "{text}\n--\n{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} does not start with {expected}");
        }
    }

    #[test]
    fn literals_and_comments_are_blanked() {
        for (text, code) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x\"y", z)"#, r#"f(      , z)"#),
            (r##"f(r#"x"y"#, br"z", rest)"##, "f(        , b    , rest)"),
            ("'a' '\\'' '\\u{1}' '\u{e9}' <'a> &'b x", "                    <'a> &'b x"),
            ("\"a\nb\" c", "  \n   c"),
            ("for x", "for x"),
        ] {
            let found = blank(text);
            let same = found.split_whitespace().eq(code.split_whitespace());
            assert!(same && found.len() == text.len(), "{text:?}: {found:?}");
            assert_eq!(found.lines().count(), text.lines().count());
        }
    }

    #[test]
    fn upward_imports_are_found() {
        let floors = check_floors as fn(&Source) -> _;
        let up = "use crate::gateway::handle;";
        complains(
            floors,
            "src/wire/sse.rs",
            up,
            &["src/wire/sse.rs:1: `wire` may not use `gateway`"],
        );
        complains(floors, "src/gateway/mod.rs", "\nuse crate::gateway::x;\nuse crate::wire;", &[]);
        let inline = "//!\nfn f() { crate::server::run() }";
        complains(
            floors,
            "src/stream/core.rs",
            inline,
            &["src/stream/core.rs:2: `stream` may not"],
        );
        let grouped = "use crate::{config::{A, stream::B}, upstream::C,\n server};";
        complains(
            floors,
            "src/upstream/h1.rs",
            grouped,
            &["src/upstream/h1.rs:1: `upstream` may not use `server`"],
        );
        complains(floors, "src/error.rs", "use crate::clock::now;", &["src/error.rs:1: `error`"]);
        complains(
            floors,
            "src/limits.rs",
            "//! See [`crate::config`].\nconst A: &str = \"crate::config\";",
            &[],
        );
        complains(
            floors,
            "src/wire/sse.rs",
            "use super::super::server::X;",
            &["src/wire/sse.rs:1:"],
        );
        complains(floors, "src/wire/sse.rs", "use super::server::X;", &[]);
        complains(
            floors,
            "src/wire.rs",
            "mod t { use super::super::server; }",
            &["src/wire.rs:1:"],
        );
        complains(floors, "src/wire/a.rs", "use crate::nowhere::X;", &["src/wire/a.rs:1: `wire`"]);
        complains(floors, "src/attic/a.rs", "", &["src/attic/a.rs:1: room `attic` is on no floor"]);
        complains(floors, "src/a.rs", "", &["src/a.rs:1: room `a`"]);
        complains(floors, "src/wire/a.rs", "macro_rules! m { () => { $crate::x } }", &[]);
        complains(floors, "src/wire/a.rs", "pub(crate) fn f() {}", &[]);
    }

    #[test]
    fn the_simulator_stands_apart() {
        let floors = check_floors as fn(&Source) -> _;
        complains(floors, "src/sim/mod.rs", "use crate::limits::TICK;\nuse crate::sim::x;", &[]);
        complains(
            floors,
            "src/sim/mod.rs",
            "use crate::wire::sse;",
            &["src/sim/mod.rs:1: `sim` may not use `wire`"],
        );
        complains(floors, "src/gateway/mod.rs", "use crate::sim::x;", &["src/gateway/mod.rs:1:"]);
        complains(floors, "src/cli.rs", "use crate::{sim::x, server};", &[]);
        complains(floors, "src/main.rs", "use crate::{cli, server, sim};", &[]);
    }

    #[test]
    fn openings_and_columns_are_checked() {
        complains(check_opening, "src/a.rs", "use x;\n//! late", &["src/a.rs:1: begin with"]);
        complains(check_opening, "src/a.rs", "//! A.", &[]);
        let (long, full) = ("x".repeat(121), "\u{e9}".repeat(120));
        complains(
            check_columns,
            "src/a.rs",
            &format!("//!\n{long}\n{full}"),
            &["src/a.rs:2: break"],
        );
    }

    #[test]
    fn long_functions_are_found() {
        let body = |lines: usize| format!("{{\n{}}}", "    x();\n".repeat(lines - 2));
        let text = format!(
            "type F = fn(u8) -> u8;\ntrait T {{ fn decl(&self, a: [u8; 2]); }}\n\
             fn ok(a: [u8; 2]) -> u8 {}\n// fn no {{\npub async fn long<T>() where T: X {}\n",
            body(90),
            body(91),
        );
        complains(check_functions, "src/a.rs", &text, &["src/a.rs:94: fn long has 91 lines"]);
        let brace = format!("fn a() {{ let s = \"{{\"; let c = '{{'; }}\n{}", "\n".repeat(100));
        complains(check_functions, "src/a.rs", &brace, &[]);
    }

    #[test]
    fn long_files_are_found_without_their_tests() {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    //\n".repeat(300));
        let (full, over) = ("//\n".repeat(500), "//\n".repeat(501));
        complains(check_length, "src/a.rs", &format!("{full}{tests}"), &[]);
        complains(check_length, "src/a.rs", &format!("{over}{tests}"), &["src/a.rs:1: 501 lines"]);
    }

    #[test]
    fn banned_calls_are_found() {
        let line = |n: usize| format!("src/a.rs:{n}: ");
        for (call, _) in BANNED {
            let text = format!("//! `{call}`\nfn f() {{\n    std::{call}(1);\n}}");
            complains(check_banned, "src/a.rs", &text, &[&line(3)]);
        }
        complains(check_banned, "src/a.rs", "fn my_todo() { tokio::time::sleep(x); }", &[]);
        let text = "fn f() {\n    x.unwrap();\n    y.unwrap_or(1);\n}\n#[cfg(test)]\nmod tests {\n    \
                    fn g() { x.unwrap(); }\n}\nfn h() { z.unwrap() }\n#[test]\nfn t() { x.unwrap() }";
        complains(check_unwrap, "src/a.rs", text, &[&line(2), &line(9)]);
        complains(
            check_unwrap,
            "src/a.rs",
            "#[cfg(test)]\nmod tests;\nfn f() { x.unwrap() }",
            &[&line(3)],
        );
    }

    #[test]
    fn empty_names_are_found() {
        complains(check_name, "src/util.rs", "", &["src/util.rs:1: `util`"]);
        complains(check_name, "tests/common/mod.rs", "", &["tests/common/mod.rs:1: `common`"]);
        complains(check_name, "src/stream/pool_manager.rs", "", &["src/stream/pool_manager.rs:1:"]);
        complains(check_name, "src/utility_room.rs", "", &[]);
    }

    #[test]
    fn dead_files_are_found_and_test_files_known() {
        let files = [
            ("src/lib.rs", "pub mod a;\n#[cfg(test)]\nmod check;\n// mod ghost;\nmod inline { }"),
            ("src/a/mod.rs", "mod b;\n#[cfg(test)]\nmod tests;\n#[path = \"odd.rs\"]\nmod even;"),
            ("src/a/b.rs", "mod deep;"),
            ("src/a/b/deep.rs", ""),
            ("src/a/tests.rs", "mod cases;"),
            ("src/a/tests/cases.rs", ""),
            ("src/a/odd.rs", ""),
            ("src/check.rs", ""),
            ("src/main.rs", ""),
            ("src/ghost.rs", ""),
            ("src/inline.rs", ""),
        ];
        let sources: BTreeMap<String, Source> = files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), Source::new(path, text)))
            .collect();
        let dead = check_reached(&sources);
        assert_eq!(dead.len(), 2, "{dead:?}");
        assert!(dead[0].starts_with("src/ghost.rs:1: no `mod` leads here"), "{dead:?}");
        assert!(dead[1].starts_with("src/inline.rs:1: "), "{dead:?}");
        let reached = reached(&sources);
        let tests: Vec<_> =
            reached.iter().filter(|(_, test)| **test).map(|(path, _)| path).collect();
        assert_eq!(tests, ["src/a/tests.rs", "src/a/tests/cases.rs", "src/check.rs"]);
    }
}
