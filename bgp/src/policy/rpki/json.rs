//! The JSON that validators export: `{"roas": [{"asn": "AS65001", "prefix": "192.0.2.0/24", "maxLength": 24, "ta": "…"}]}`.
//!
//! rpki-client writes the AS as a number, Routinator, FORT and others as text with `AS` in front; what else is in
//! the file (metadata, trust anchors, router keys, expiry) is passed over. Read in one pass without a tree of the whole file.

use std::{borrow::Cow, fmt};

use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{Vrp, Vrps};
use crate::id::Asn;

/// Payloads in one file at most; the whole RPKI has about 800,000.
pub const VRPS_MAX: usize = 4_000_000;

/// Why a file of payloads was not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to read VRPs: {message} at line {line} column {column}")]
pub struct VrpsError {
    /// What is wrong.
    pub message: String,
    /// Where, from 1.
    pub line: usize,
    /// Where, from 1.
    pub column: usize,
}

impl Vrps {
    /// Reads the JSON export of a validator.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place. Nothing is taken from a file with an error: half of the payloads
    /// would make valid routes invalid.
    pub fn from_json(text: &[u8]) -> Result<Self, VrpsError> {
        let file: File = serde_json::from_slice(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let whole = error.to_string();
            let place = format!(" at line {line} column {column}");
            let message = whole.strip_suffix(&place).unwrap_or(&whole).to_owned();
            VrpsError { message, line, column }
        })?;
        Ok(Self::new(file.0))
    }
}

struct File(Vec<Vrp>);

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FileVisitor).map(Self)
    }
}

struct FileVisitor;

impl<'de> Visitor<'de> for FileVisitor {
    type Value = Vec<Vrp>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the key \"roas\"")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            if key != "roas" {
                map.next_value::<IgnoredAny>()?;
            } else if found.is_none() {
                found = Some(map.next_value::<Roas>()?.0);
            } else {
                return Err(M::Error::custom("the key \"roas\" is there twice"));
            }
        }
        found.ok_or_else(|| M::Error::custom("the key \"roas\" is missing"))
    }
}

struct Roas(Vec<Vrp>);

impl<'de> Deserialize<'de> for Roas {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(RoasVisitor).map(Self)
    }
}

struct RoasVisitor;

impl<'de> Visitor<'de> for RoasVisitor {
    type Value = Vec<Vrp>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects with asn, prefix and maxLength")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Self::Value, S::Error> {
        let mut vrps = Vec::new();
        while let Some(roa) = list.next_element::<Roa<'_>>()? {
            if vrps.len() == VRPS_MAX {
                return Err(S::Error::custom(format_args!("more than {VRPS_MAX} entries")));
            }
            vrps.push(roa.vrp()?);
        }
        Ok(vrps)
    }
}

#[derive(Deserialize)]
struct Roa<'a> {
    #[serde(borrow)]
    asn: AsnText<'a>,
    #[serde(borrow)]
    prefix: Cow<'a, str>,
    #[serde(rename = "maxLength")]
    length_max: Option<u8>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "asn is neither a number nor a text")]
enum AsnText<'a> {
    Number(u32),
    #[serde(borrow)]
    Text(Cow<'a, str>),
}

impl Roa<'_> {
    fn vrp<E: serde::de::Error>(self) -> Result<Vrp, E> {
        let asn = match &self.asn {
            AsnText::Number(number) => *number,
            AsnText::Text(text) => {
                let digits = text.strip_prefix("AS").or_else(|| text.strip_prefix("as")).unwrap_or(text);
                digits.parse().map_err(|_| E::custom(format_args!("asn {text:?} is not an AS number")))?
            }
        };
        let text = &self.prefix;
        let prefix: IpNet = text.parse().map_err(|_| E::custom(format_args!("{text:?} is not a prefix")))?;
        if prefix != prefix.trunc() {
            return Err(E::custom(format_args!("{prefix} has host bits set")));
        }
        let (length, longest) = (prefix.prefix_len(), prefix.max_prefix_len());
        let length_max = self.length_max.unwrap_or(length);
        if length_max < length || length_max > longest {
            return Err(E::custom(format_args!("maxLength {length_max} of {prefix} is outside {length} to {longest}")));
        }
        Ok(Vrp { prefix, length_max, asn: Asn(asn) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rpki::Validity;

    #[test]
    fn exports_of_common_validators_are_read() {
        let routinator = r#"{
  "metadata": {"generated": 1761000000, "generatedTime": "2025-10-20T22:40:00Z"},
  "roas": [
    { "asn": "AS65001", "prefix": "192.0.2.0/24", "maxLength": 26, "ta": "ripe" },
    { "asn": "AS4200000000", "prefix": "2001:db8::/32", "maxLength": 48, "ta": "arin" }
  ],
  "routerKeys": [], "aspas": []
}"#;
        let rpki_client = r#"{"metadata":{"buildmachine":"x","roas":2},"roas":[{"asn":65001,"prefix":"192.0.2.0/24","maxLength":26,"ta":"ripe","expires":1761000000},
            {"asn":4200000000,"prefix":"2001:db8::/32","maxLength":48,"ta":"arin","expires":1}],"bgpsec_keys":[{"asn":1,"ski":"a"}]}"#;
        let read = Vrps::from_json(routinator.as_bytes()).expect("VRPs");
        assert_eq!(read, Vrps::from_json(rpki_client.as_bytes()).expect("VRPs"));
        assert_eq!(read.counts(), (1, 1));
        let prefix = "192.0.2.128/26".parse().expect("a prefix");
        assert_eq!(read.validity(&prefix, Some(Asn(65_001))), Validity::Valid);
        assert_eq!(Vrps::from_json(br#"{"roas":[]}"#).expect("VRPs").counts(), (0, 0));
        let plain = br#"{"roas":[{"asn":"1","prefix":"10.0.0.0/8"}]}"#;
        assert_eq!(Vrps::from_json(plain).expect("VRPs").counts(), (1, 0));
    }

    #[test]
    fn errors_say_what_and_where() {
        let one = |roa: &str| format!("{{\n\"roas\": [\n{roa}]}}");
        for (text, message, line) in [
            (String::new(), "EOF while parsing a value", 1),
            ("[]".to_owned(), "an object with the key \"roas\"", 1),
            ("{}".to_owned(), "the key \"roas\" is missing", 1),
            ("{\"roas\":[],\n\"roas\":[]}".to_owned(), "the key \"roas\" is there twice", 2),
            ("{\"roas\":7}".to_owned(), "expected a list of objects", 1),
            (one(r#"{"asn":"ASx","prefix":"10.0.0.0/8","maxLength":8}"#), "asn \"ASx\" is not an AS number", 3),
            (one(r#"{"asn":4294967296,"prefix":"10.0.0.0/8"}"#), "asn is neither a number nor a text", 3),
            (one(r#"{"asn":1,"prefix":"10.0.0.0","maxLength":8}"#), "\"10.0.0.0\" is not a prefix", 3),
            (one(r#"{"asn":1,"prefix":"10.0.0.1/8","maxLength":8}"#), "10.0.0.1/8 has host bits set", 3),
            (
                one(r#"{"asn":1,"prefix":"10.0.0.0/8","maxLength":7}"#),
                "maxLength 7 of 10.0.0.0/8 is outside 8 to 32",
                3,
            ),
            (one(r#"{"asn":1,"prefix":"10.0.0.0/8","maxLength":33}"#), "is outside 8 to 32", 3),
            (one(r#"{"prefix":"10.0.0.0/8","maxLength":33}"#), "missing field `asn`", 3),
            ("{\"roas\":[]} x".to_owned(), "trailing characters", 1),
        ] {
            let error = Vrps::from_json(text.as_bytes()).expect_err(&text);
            assert!(error.message.contains(message), "{text}: {error}");
            assert!(error.line == line || error.line == line - 1, "{text}: {error}");
        }
    }
}
