//! JSON as Go's `encoding/json` reads and writes it.
//!
//! Reading: field names match exactly or, failing that, without regard to ASCII case; unknown fields are passed over;
//! `null` leaves the default; of a repeated field the last one counts. Texts are borrowed from the input where it has
//! no escapes, and lists keep only a bounded number of entries while counting all.
//! Writing: struct fields in declaration order, and `<`, `>`, `&`, U+2028 and U+2029 escaped.
//!
//! The serde derives cannot match names without regard to case, so [`go_record!`] writes the visitor.

use std::{borrow::Cow, fmt, io, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::ser::Formatter;

use super::rejection::{Excerpt, Rejection};

/// Reads one value that fills all of `bytes`.
pub(super) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Rejection> {
    serde_json::from_slice(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let text = error.to_string();
        // The position is a field of its own; serde_json appends it to the text as well.
        let problem = text.rsplit_once(" at line ").map_or(&*text, |(problem, _)| problem);
        Rejection::Json { line, column, problem: Excerpt::plain(problem) }
    })
}

/// Writes `value` as Go would.
pub(super) fn write<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, GoFormatter);
    value.serialize(&mut serializer).expect("wire structs have text keys and write to memory");
    bytes
}

/// Text of the input, borrowed unless it had escapes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A list that keeps its first `MAX` entries and counts all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct List<T, const MAX: usize> {
    entries: Vec<T>,
    found: usize,
}

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self { entries: Vec::new(), found: 0 }
    }
}

impl<T, const MAX: usize> List<T, MAX> {
    /// The entries, unless there were more than are kept.
    pub(super) fn bounded(&self, field: &'static str) -> Result<&[T], Rejection> {
        if self.found > MAX {
            return Err(Rejection::TooManyEntries { field, found: self.found, limit: MAX });
        }
        Ok(&self.entries)
    }
}

impl<'de, T: Deserialize<'de> + Default, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
            type Value = List<T, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut list = List::default();
                while list.entries.len() < MAX {
                    let Some(entry) = access.next_element::<Option<T>>()? else { return Ok(list) };
                    list.entries.push(entry.unwrap_or_default());
                    list.found += 1;
                }
                while access.next_element::<IgnoredAny>()?.is_some() {
                    list.found += 1;
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

/// An object with arbitrary names: keeps its first `MAX` entries in the order of the input and counts all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entries<'a, T, const MAX: usize> {
    entries: Vec<(Text<'a>, T)>,
    found: usize,
}

impl<T, const MAX: usize> Default for Entries<'_, T, MAX> {
    fn default() -> Self {
        Self { entries: Vec::new(), found: 0 }
    }
}

impl<'a, T, const MAX: usize> Entries<'a, T, MAX> {
    /// The entries, unless there were more than are kept.
    pub(super) fn bounded(&self, field: &'static str) -> Result<&[(Text<'a>, T)], Rejection> {
        if self.found > MAX {
            return Err(Rejection::TooManyEntries { field, found: self.found, limit: MAX });
        }
        Ok(&self.entries)
    }
}

impl<'de, T: Deserialize<'de> + Default, const MAX: usize> Deserialize<'de> for Entries<'de, T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default, const MAX: usize> Visitor<'de> for EntriesVisitor<T, MAX> {
            type Value = Entries<'de, T, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut map = Entries::default();
                while map.entries.len() < MAX {
                    let Some(name) = access.next_key()? else { return Ok(map) };
                    map.entries.push((name, access.next_value::<Option<T>>()?.unwrap_or_default()));
                    map.found += 1;
                }
                while access.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    map.found += 1;
                }
                Ok(map)
            }
        }
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

/// Defines a struct that is read with Go's rules. Every field has a wire name, a default, and borrows for `'de`.
macro_rules! go_record {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $wire:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Default)]
        pub(super) struct $name<'de> {
            $($(#[$field_doc])* pub(super) $field: $type,)+
            pub(super) input: std::marker::PhantomData<&'de ()>,
        }

        impl<'de> serde::Deserialize<'de> for $name<'de> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[expect(non_camel_case_types, reason = "one variant per field, named like the field")]
                enum Field { $($field,)+ Unknown }

                struct FieldVisitor;
                impl serde::de::Visitor<'_> for FieldVisitor {
                    type Value = Field;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a field name")
                    }
                    fn visit_str<E>(self, name: &str) -> Result<Field, E> {
                        // Exact names first: they are what every writer uses.
                        match name {
                            $($wire => return Ok(Field::$field),)+
                            _ => {}
                        }
                        $(if name.eq_ignore_ascii_case($wire) { return Ok(Field::$field); })+
                        Ok(Field::Unknown)
                    }
                }
                impl<'de> serde::Deserialize<'de> for Field {
                    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                        deserializer.deserialize_identifier(FieldVisitor)
                    }
                }

                struct RecordVisitor<'de>(std::marker::PhantomData<&'de ()>);
                impl<'de> serde::de::Visitor<'de> for RecordVisitor<'de> {
                    type Value = $name<'de>;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }
                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut access: A) -> Result<$name<'de>, A::Error> {
                        let mut record = $name::default();
                        while let Some(field) = access.next_key::<Field>()? {
                            match field {
                                $(Field::$field => {
                                    if let Some(value) = access.next_value::<Option<$type>>()? {
                                        record.$field = value;
                                    }
                                })+
                                Field::Unknown => {
                                    access.next_value::<serde::de::IgnoredAny>()?;
                                }
                            }
                        }
                        Ok(record)
                    }
                }
                deserializer.deserialize_map(RecordVisitor(std::marker::PhantomData))
            }
        }
    };
}
pub(super) use go_record;

/// Escapes what Go escapes beyond JSON's own rules.
struct GoFormatter;

impl Formatter for GoFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (plain, tail) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let Some(escaped) = tail.chars().next() else { break };
            write!(writer, "\\u{:04x}", u32::from(escaped))?;
            rest = &tail[escaped.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests;
