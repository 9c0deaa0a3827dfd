//! Split at every offset, and held against `serde_json`.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn scan(pieces: &[&[u8]]) -> Found {
    let mut scanner = Scanner::new();
    pieces.iter().for_each(|piece| scanner.feed(piece));
    scanner.found().clone()
}

/// What a parser makes of the whole text.
fn parsed(bytes: &[u8]) -> Found {
    let value: Value = serde_json::from_slice(bytes).unwrap();
    let text = |key: &str| {
        let text = value.get(key)?.as_str().filter(|text| text.len() <= SCANNED_VALUE_BYTES);
        text.map(Box::from)
    };
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    Found {
        stream: value.get("stream").and_then(Value::as_bool),
        model: text("model"),
        max_tokens: number("max_tokens").or(number("max_completion_tokens")),
        user: text("user"),
    }
}

fn found(stream: Option<bool>, model: &str, max_tokens: Option<u64>, user: &str) -> Found {
    let text = |text: &str| (!text.is_empty()).then(|| Box::from(text));
    Found { stream, model: text(model), max_tokens, user: text(user) }
}

#[test]
fn it_stays_small() {
    assert!(size_of::<Scanner>() <= 160, "{}", size_of::<Scanner>());
}

const BODIES: &[&str] = &[
    r#"{}"#,
    r#"{"stream":true,"model":"gpt-4o","max_tokens":100,"user":"u1"}"#,
    r#"{"messages":[{"role":"user","content":"stream: \"true\" } ]","model":"x"}],"stream":false}"#,
    " \r\n\t{ \"model\" : \"m\" , \"stream\" : true , \"max_completion_tokens\" : 7 }\n",
    r#"{"a":{"stream":true,"b":[{"model":"inner"}]},"model":"outer"}"#,
    r#"{"user":"tab\t quote\" slash\/ back\\ e\u00e9 \ud83c\udf0a","model":"żółw 🐢"}"#,
    r#"{"\u0073tream":true,"mode\u006C":"x","us\\er":"no","user\u0000":"no"}"#,
    r#"{"stream":true,"stream":false,"model":"a","model":"b","max_tokens":1,"max_tokens":2}"#,
    r#"{"stream":true,"stream":null,"model":"a","model":5,"max_tokens":1,"max_tokens":"x"}"#,
    r#"{"stream":"true","model":["gpt"],"max_tokens":1.5,"user":{"id":1}}"#,
    r#"{"max_tokens":-1}"#,
    r#"{"max_tokens":1e3}"#,
    r#"{"max_tokens":18446744073709551615}"#,
    r#"{"max_tokens":18446744073709551616}"#,
    r#"{"max_tokens":100000000000000000000000000000000000000}"#,
    r#"{"max_tokens":0,"n":-0.5e-3,"x":null,"y":[],"z":{},"w":"","stream":true}"#,
    r#"{"":1,"s":"\\","t":"\\\"","stream":true}"#,
    r#"{"averyveryverylongkeythatmattersnot":1,"stream":true}"#,
];

#[test]
fn it_finds_what_a_parser_finds_however_split() {
    for body in BODIES {
        let bytes = body.as_bytes();
        let expected = parsed(bytes);
        for at in 0..=bytes.len() {
            let (a, b) = bytes.split_at(at);
            assert_eq!(scan(&[a, b]), expected, "{body} at {at}");
        }
        let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(scan(&bytewise), expected, "{body} bytewise");
    }
}

#[test]
fn the_values_are_those_written() {
    let all = found(Some(true), "gpt-4o", Some(100), "u1");
    assert_eq!(scan(&[BODIES[1].as_bytes()]), all);
    let escapes = found(None, "żółw 🐢", None, "tab\t quote\" slash/ back\\ eé 🌊");
    assert_eq!(scan(&[BODIES[5].as_bytes()]), escapes);
}

#[test]
fn the_two_names_of_the_token_limit_share_a_field() {
    let tokens = |body: &str| scan(&[body.as_bytes()]).max_tokens;
    assert_eq!(tokens(r#"{"max_tokens":1,"max_completion_tokens":2}"#), Some(2));
    assert_eq!(tokens(r#"{"max_completion_tokens":2,"max_tokens":1}"#), Some(1));
    assert_eq!(tokens(r#"{"max_completion_tokens":2,"max_tokens":null}"#), Some(2));
    assert_eq!(tokens(r#"{"max_output_tokens":3,"max_tokens":null}"#), Some(3));
    assert_eq!(tokens(r#"{"max_tokens":1,"max_completion_tokens":null}"#), Some(1));
    assert_eq!(tokens(r#"{"max_tokens":1,"max_tokens":null}"#), None);
}

#[test]
fn long_strings_are_left_out() {
    let body = |n: usize| format!(r#"{{"model":"{}","stream":true}}"#, "m".repeat(n));
    assert_eq!(scan(&[body(256).as_bytes()]).model.unwrap().len(), 256);
    assert_eq!(scan(&[body(257).as_bytes()]), found(Some(true), "", None, ""));
    let long = body(1 << 20);
    let pieces: Vec<&[u8]> = long.as_bytes().chunks(1000).collect();
    assert_eq!(scan(&pieces), found(Some(true), "", None, ""));
}

#[test]
fn only_whole_values_count() {
    let cases: &[(&str, Found)] = &[
        (r#"{"stream":true"#, Found::default()),
        (r#"{"stream":true "#, found(Some(true), "", None, "")),
        (r#"{"model":"gpt"#, Found::default()),
        (r#"{"max_tokens":12"#, Found::default()),
    ];
    for (body, expected) in cases {
        assert_eq!(scan(&[body.as_bytes()]), *expected, "{body}");
    }
}

#[test]
fn after_a_malformation_nothing_more_is_found() {
    let tail = r#""stream":true}"#;
    let heads = [
        "",
        "[",
        "\"x\"",
        "1",
        "{,",
        "{]",
        "{{",
        "{1:2,",
        "{\"a\"1,",
        "{\"a\":,",
        "{\"a\":1 2,",
        "{\"a\":tr\"ue\",",
        "{\"a\":[]],",
        "{\"a\":1,,",
        "{\"a\" \"b\",",
        "{}{",
        "\u{feff}{",
        "{\"a\":@,",
    ];
    for head in heads {
        let body = format!("{head}{tail}");
        assert!(serde_json::from_str::<Value>(&body).is_err(), "{body}");
        assert_eq!(scan(&[body.as_bytes()]), Found::default(), "{body}");
    }
    let body = br#"{"model":"x","a":@,"stream":true}"#;
    assert_eq!(scan(&[body]), found(None, "x", None, ""), "what came before stays");
}

#[test]
fn broken_escapes_spoil_only_their_string() {
    for value in
        [r"\ud800", r"\ud800x", r"\udc00", r"\ud800\n", r"\ud800A", r"\x", r"\u12", r"\u12g4"]
    {
        let body = format!(r#"{{"model":"{value}","stream":true}}"#);
        assert!(serde_json::from_str::<Value>(&body).is_err(), "{body}");
        assert_eq!(scan(&[body.as_bytes()]), found(Some(true), "", None, ""), "{body}");
    }
    let latin = b"{\"model\":\"caf\xe9\",\"stream\":true}";
    assert_eq!(scan(&[latin]), found(Some(true), "", None, ""));
}

#[test]
fn deep_nesting_costs_nothing() {
    let deep = "[".repeat(1 << 20);
    let mut scanner = Scanner::new();
    scanner.feed(b"{\"a\":");
    scanner.feed(deep.as_bytes());
    scanner.feed(deep.replace('[', "]").as_bytes());
    scanner.feed(b",\"stream\":true}");
    assert_eq!(scanner.found().stream, Some(true));
    assert!(scanner.is_over());

    let mut scanner = Scanner::new();
    scanner.feed(b"{\"a\":[");
    scanner.depth = u32::MAX;
    scanner.feed(b"[");
    assert!(scanner.is_over(), "what cannot be counted ends the search");
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let key = prop_oneof![Just("stream".to_owned()), any::<String>()];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn key_text() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => proptest::sample::select(vec!["stream", "model", "max_tokens", "user"])
            .prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

/// A JSON string with some of its characters escaped though they need not be.
fn escaped(text: &str, every: usize) -> String {
    let plain = serde_json::to_string(text).unwrap();
    if text.chars().any(|c| c == '"' || c == '\\' || c < ' ') {
        return plain;
    }
    let mut out = String::from("\"");
    for (i, c) in text.chars().enumerate() {
        if i % every == 0 {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|u| out.push_str(&format!("\\u{u:04x}")));
        } else {
            out.push(c);
        }
    }
    out + "\""
}

proptest! {
    #[test]
    fn random_objects_agree_with_serde_json(
        pairs in proptest::collection::vec((key_text(), value(), any::<bool>()), 0..8),
        every in 1..4usize,
        gap in "[ \t\r\n]{0,3}",
        size in 1..50usize,
    ) {
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(key, value, pretty)| {
                let value = match value {
                    Value::String(text) => escaped(text, every),
                    value if *pretty => serde_json::to_string_pretty(value).unwrap(),
                    value => value.to_string(),
                };
                format!("{gap}{}{gap}:{gap}{value}{gap}", escaped(key, every))
            })
            .collect();
        let body = format!("{gap}{{{}}}{gap}", pairs.join(","));
        let pieces: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
        prop_assert_eq!(scan(&pieces), parsed(body.as_bytes()), "{}", body);
    }

    #[test]
    fn random_bytes_never_panic_and_split_alike(
        bytes in proptest::collection::vec(
            prop_oneof![
                proptest::sample::select(b"{}[]\",:\\u0d8 truestream".to_vec()),
                any::<u8>(),
            ],
            0..120,
        ),
        at in any::<usize>(),
    ) {
        let mut all = b"{\"stream\":".to_vec();
        all.extend_from_slice(&bytes);
        let (a, b) = all.split_at(at % (all.len() + 1));
        prop_assert_eq!(scan(&[a, b]), scan(&[&all]));
    }
}
