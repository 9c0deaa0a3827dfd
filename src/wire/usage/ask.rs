//! Where a request's body has to be changed for its stream to tell its usage.
//!
//! OpenAI's API tells it only if the request says `"stream_options":{"include_usage":true}`. This finds the
//! one place where that can be said; every other byte stays. Refuses: whatever is not certain. A body
//! that is no JSON object, that does not ask for a stream, in which one of the keys stands twice
//! or has a value of another type, is left to the upstream as it is. Cost: one pass of `serde_json` over
//! the body, which builds nothing of it.

use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A change of a body: what `instead` takes the place of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splice {
    /// Bytes that go, perhaps none.
    pub at: Range<usize>,
    /// What comes there.
    pub instead: &'static [u8],
}

/// How `body` comes to ask for its stream's usage; `None` if it does already, or is not understood.
pub fn for_usage(body: &[u8]) -> Option<Splice> {
    let top: Object<'_, 2> = parsed(body, ["stream", "stream_options"])?;
    let [Some(stream), options] = top.values else { return None };
    if stream.get() != "true" {
        return None;
    }
    let Some(options) = options else {
        let end = place(body, stream).end;
        return Some(Splice {
            at: end..end,
            instead: br#","stream_options":{"include_usage":true}"#,
        });
    };
    let at = place(body, options);
    if options.get() == "null" {
        return Some(Splice { at, instead: br#"{"include_usage":true}"# });
    }
    let inner: Object<'_, 1> = parsed(options.get().as_bytes(), ["include_usage"])?;
    match inner.values[0].map(|value| (value.get(), place(body, value))) {
        Some(("false" | "null", at)) => Some(Splice { at, instead: b"true" }),
        Some(_) => None,
        None => {
            let behind = at.start + 1;
            let empty = inner.entries == 0;
            let instead: &[u8] =
                if empty { br#""include_usage":true"# } else { br#""include_usage":true,"# };
            Some(Splice { at: behind..behind, instead })
        }
    }
}

/// Where in `body` a value stands that was read from it.
fn place(body: &[u8], value: &RawValue) -> Range<usize> {
    let start = value.get().as_ptr().addr() - body.as_ptr().addr();
    start..start + value.get().len()
}

/// A JSON object, by the values of `N` of its keys.
struct Object<'b, const N: usize> {
    values: [Option<&'b RawValue>; N],
    entries: usize,
    /// One of the keys stands twice.
    twice: bool,
}

fn parsed<'b, const N: usize>(text: &'b [u8], keys: [&str; N]) -> Option<Object<'b, N>> {
    let mut read = serde_json::Deserializer::from_slice(text);
    let object = read.deserialize_map(Keys(keys)).ok()?;
    read.end().ok()?;
    (!object.twice).then_some(object)
}

/// The keys that are looked for; as a seed, reads which of them a key is.
struct Keys<'k, const N: usize>([&'k str; N]);

impl<'b, const N: usize> DeserializeSeed<'b> for &Keys<'_, N> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'b>>(self, key: D) -> Result<Option<usize>, D::Error> {
        struct Which<'k>(&'k [&'k str]);
        impl Visitor<'_> for Which<'_> {
            type Value = Option<usize>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, key: &str) -> Result<Option<usize>, E> {
                Ok(self.0.iter().position(|wanted| *wanted == key))
            }
        }
        key.deserialize_str(Which(&self.0))
    }
}

impl<'b, const N: usize> Visitor<'b> for Keys<'_, N> {
    type Value = Object<'b, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<Object<'b, N>, A::Error> {
        let mut object = Object { values: [None; N], entries: 0, twice: false };
        while let Some(key) = map.next_key_seed(&self)? {
            object.entries += 1;
            match key {
                Some(n) => object.twice |= object.values[n].replace(map.next_value()?).is_some(),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// The body as it goes on, if it is changed.
    fn changed(body: &str) -> Option<String> {
        let Splice { at, instead } = for_usage(body.as_bytes())?;
        let (before, behind) = (&body[..at.start], &body[at.end..]);
        Some(format!("{before}{}{behind}", std::str::from_utf8(instead).expect("ASCII")))
    }

    const OPTIONS: &str = r#","stream_options":{"include_usage":true}"#;

    #[test]
    fn a_body_is_changed_at_one_place_only() {
        let inner = r#""include_usage":true"#;
        let object = format!("{{{inner}}}");
        // What stands before the place, what goes, what comes, what stands behind.
        for (before, goes, comes, behind) in [
            (r#"{"stream":true"#, "", OPTIONS, "}"),
            (r#"{"stream":true"#, "", OPTIONS, r#","messages":[]}"#),
            (" { \"a\" : 1.0e2 ,\r\n\t\"stream\" : true", "", OPTIONS, " , \"a\":2 } \n"),
            (r#"{"str\u0065am":true"#, "", OPTIONS, r#","n":123456789012345678901234567890}"#),
            (r#"{"s":"\ud83d\u0021","stream":true"#, "", OPTIONS, "}"),
            (r#"{"m":[{"stream":false,"stream_options":1}],"stream":true"#, "", OPTIONS, "}"),
            (r#"{"stream_options":"#, "null", &object, r#","stream":true}"#),
            (r#"{"stream_options": {"#, "", inner, r#" } ,"stream":true}"#),
            (
                r#"{"stream_options":{"#,
                "",
                r#""include_usage":true,"#,
                r#" "x":{"include_usage":7}},"stream":true}"#,
            ),
            (r#"{"stream_options":{"include_usage" : "#, "false", "true", r#"},"stream":true}"#),
            (r#"{"stream":true,"stream_options":{"include_usage":"#, "null", "true", r#","x":0}}"#),
        ] {
            let body = format!("{before}{goes}{behind}");
            let expected = format!("{before}{comes}{behind}");
            assert_eq!(changed(&body), Some(expected), "{body}");
        }
    }

    #[test]
    fn what_asks_already_or_is_not_certain_is_left_alone() {
        for body in [
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            r#"{"stream":true,"stream_options":{"x":1,"include\u005fusage":true}}"#,
            r#"{"stream":false}"#,
            r#"{"stream":null}"#,
            r#"{"stream":"true"}"#,
            r#"{"messages":[{"stream":true}]}"#,
            r#"{"stream":true,"stream":true}"#,
            r#"{"stream":false,"stream":true}"#,
            r#"{"stream":true,"stream_options":null,"stream_options":{}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":false,"include_usage":false}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":1}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":"true"}}"#,
            r#"{"stream":true,"stream_options":[]}"#,
            r#"{"stream":true,"stream_options":true}"#,
            r#"{"stream":true} {}"#,
            r#"{"stream":true"#,
            r#"{"stream":true,}"#,
            r#"{'stream':true}"#,
            r#"{"stream":true,"x":01}"#,
            "\u{feff}{\"stream\":true}",
            r#"[{"stream":true}]"#,
            "stream=true",
            "true",
            "",
        ] {
            assert_eq!(for_usage(body.as_bytes()), None, "{body}");
        }
        assert_eq!(for_usage(b"{\"stream\":true,\"\xff\":1}"), None, "no UTF-8");
    }

    #[test]
    fn depth_costs_nothing() {
        let deep =
            format!("{{\"a\":{}{},\"stream\":true}}", "[".repeat(1 << 18), "]".repeat(1 << 18));
        let expected = format!("{}{OPTIONS}}}", &deep[..deep.len() - 1]);
        assert_eq!(changed(&deep), Some(expected));
    }

    fn options() -> impl Strategy<Value = Option<Value>> {
        prop_oneof![
            Just(None),
            Just(Some(Value::Null)),
            (any::<Option<Option<bool>>>(), any::<Option<u8>>()).prop_map(|(usage, other)| {
                let mut object = serde_json::Map::new();
                usage.map(|usage| object.insert("include_usage".into(), json!(usage)));
                other.map(|other| object.insert("chunk".into(), json!(other)));
                Some(Value::Object(object))
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_parser_sees_the_option_and_nothing_else_changed(
            options in options(),
            others in proptest::collection::btree_map("[a-z\"\\\\é🐢]{0,6}", any::<i64>(), 0..5),
            pretty in any::<bool>(),
        ) {
            let mut body: serde_json::Map<_, _> = others.into_iter().map(|(k, v)| (k, json!(v))).collect();
            body.insert("stream".into(), json!(true));
            options.map(|options| body.insert("stream_options".into(), options));
            let mut wanted = body.clone();
            let asks = body.get("stream_options").and_then(|o| o.get("include_usage")) == Some(&json!(true));
            let object = wanted.entry("stream_options").or_insert(json!({}));
            if object.is_null() {
                *object = json!({});
            }
            object["include_usage"] = json!(true);
            let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) };
            let text = text.expect("a body");
            match changed(&text) {
                None => prop_assert!(asks, "{}", text),
                Some(new) => {
                    prop_assert!(!asks);
                    let parsed: Value = serde_json::from_str(&new).expect("JSON");
                    prop_assert_eq!(parsed, Value::Object(wanted));
                }
            }
        }
    }
}
