//! Configuration sections that describe themselves.
//!
//! [`section!`] turns one declaration into three things that therefore cannot differ: the raw struct serde
//! fills, the list of keys the unknown-key and wrong-type checks walk, and the text of the reference page.

/// A type of configuration value that knows what it accepts.
pub trait Described {
    /// What it accepts.
    const KIND: Kind;
}

/// What a configuration value may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number in the range.
    Integer(i64, i64),
    /// A text; the word says what it stands for in the reference page.
    Text(&'static str),
    /// One of the words.
    Choice(&'static [&'static str]),
    /// A list of values.
    List(&'static Kind),
    /// A table with free keys and values of one kind.
    Map(&'static Kind),
    /// A table with known keys.
    Table(&'static Section),
    /// A key of a later version: accepted only when it says that the feature is off.
    Unsupported,
}

impl Kind {
    /// The words of the reference page and of a wrong-type error.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Integer(low, high) => format!("a whole number from {low} to {high}"),
            Self::Text(what) => (*what).to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::List(Self::Table(_)) => "a list of tables".to_owned(),
            Self::List(item) => format!("a list, each item {}", item.words()),
            Self::Map(Self::Text(_)) => "a table of texts".to_owned(),
            Self::Map(Self::Table(_)) => "a table of tables".to_owned(),
            Self::Map(Self::Integer(..)) => "a table of numbers".to_owned(),
            Self::Map(_) => "a table of lists".to_owned(),
            Self::Table(_) => "a table".to_owned(),
            Self::Unsupported => "not supported by this version".to_owned(),
        }
    }
}

/// A table of the configuration.
#[derive(Debug)]
pub struct Section {
    /// What it is for, one line per element.
    pub doc: &'static [&'static str],
    /// Its keys in the order of the reference page.
    pub fields: &'static [Field],
}

/// A key of a table.
#[derive(Debug)]
pub struct Field {
    /// The key.
    pub name: &'static str,
    /// What it is for, one line per element.
    pub doc: &'static [&'static str],
    /// What it accepts.
    pub kind: Kind,
    /// What holds when it is not given, in words.
    pub default: &'static str,
}

/// Takes the `r#` off a field whose name is a Rust keyword.
#[must_use]
pub const fn plain_name(field: &'static str) -> &'static str {
    let bytes = field.as_bytes();
    if bytes.len() > 2 && bytes[0] == b'r' && bytes[1] == b'#' { field.split_at(2).1 } else { field }
}

impl<T: Described> Described for Option<T> {
    const KIND: Kind = T::KIND;
}

impl<T: Described> Described for Vec<T> {
    const KIND: Kind = Kind::List(&T::KIND);
}

impl<T: Described> Described for std::collections::BTreeMap<String, T> {
    const KIND: Kind = Kind::Map(&T::KIND);
}

impl Described for String {
    const KIND: Kind = Kind::Text("a text");
}

impl Described for bool {
    const KIND: Kind = Kind::Bool;
}

macro_rules! integer {
    ($($ty:ty),*) => {$(
        impl Described for $ty {
            // The kernel's and the wire's numbers are at most 32 bits wide, so the bounds fit.
            const KIND: Kind = Kind::Integer(0, <$ty>::MAX as i64);
        }
    )*};
}
integer!(u16, u32);

/// Declares texts that stand for something (`Address`, `PrefixText`).
macro_rules! text {
    ($($(#[doc = $doc:literal])* $name:ident = $what:literal;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $crate::config::described::Described for $name {
            const KIND: $crate::config::described::Kind = $crate::config::described::Kind::Text($what);
        }

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    )*};
}

/// Declares a choice of words.
macro_rules! choice {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $vdoc:literal])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
        pub enum $name {
            $($(#[doc = $vdoc])* #[serde(rename = $word)] $variant,)*
        }

        impl $crate::config::described::Described for $name {
            const KIND: $crate::config::described::Kind = $crate::config::described::Kind::Choice(&[$($word),*]);
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $word,)* })
            }
        }
    };
}

/// Declares a section: `key: Type = "default in words"`.
macro_rules! section {
    ($(#[doc = $doc:literal])* $name:ident {
        $($(#[doc = $fdoc:literal])* $field:ident : $ty:ty = $default:literal),* $(,)?
    }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, Default, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[doc = $fdoc])* pub $field: $ty,)*
        }

        impl $name {
            /// Its keys.
            pub const SECTION: $crate::config::described::Section = $crate::config::described::Section {
                doc: &[$($doc),*],
                fields: &[$($crate::config::described::Field {
                    name: $crate::config::described::plain_name(stringify!($field)),
                    doc: &[$($fdoc),*],
                    kind: <$ty as $crate::config::described::Described>::KIND,
                    default: $default,
                }),*],
            };
        }

        impl $crate::config::described::Described for $name {
            const KIND: $crate::config::described::Kind = $crate::config::described::Kind::Table(&$name::SECTION);
        }
    };
}

pub(crate) use {choice, section, text};
