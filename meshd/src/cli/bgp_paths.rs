//! Long lists of `meshd bgp`: they are printed a page at a time, so that a full table costs no memory here and the first
//! lines come at once.

use std::fmt::{Display, Write as _};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    client::{SocketOptions, block_on, encode},
    failure::Failure,
    options::Format,
    output,
};
use crate::api::bgp_paths_view::{
    BgpAdvertisedPageView, BgpAdvertisedView, BgpAttributesView, BgpMessageView, BgpPathView, BgpPathsView,
};

const PATH: [&str; 13] = [
    "ST",
    "NETWORK",
    "NEXT HOP",
    "NEIGHBOR",
    "METRIC",
    "LOCPRF",
    "PATH",
    "ORIGIN",
    "REASON",
    "COMMUNITIES",
    "OTHER",
    "PATH ID",
    "SINCE",
];
const PATH_SHORT: usize = 9;
const ADVERTISED: [&str; 11] = [
    "NEIGHBOR",
    "NETWORK",
    "NEXT HOP",
    "METRIC",
    "LOCPRF",
    "PATH",
    "ORIGIN",
    "FROM",
    "COMMUNITIES",
    "OTHER",
    "PATH ID",
];
const ADVERTISED_SHORT: usize = 8;

/// `rib`
pub(super) fn rib(socket: &SocketOptions, format: Format, prefix: Option<&str>) -> Result<(), Failure> {
    let Some(prefix) = prefix else {
        return stream(socket, format, "rib", None, (&PATH, PATH_SHORT), path_cells, split_paths).map(drop);
    };
    let page: BgpPathsView = block_on(socket.get(&format!("/v1/bgp/rib?name={}", encode(prefix))))??;
    if page.entries.is_empty() {
        return Err(Failure::message(format!("there is no path to {prefix}"))
            .hint("`meshd bgp rib ADDRESS` shows the longest match, `meshd bgp received` what was not accepted, too"));
    }
    let mut printer = Printer::new(format, &PATH, PATH_SHORT);
    output::text(&printer.page(&page.entries, path_cells)?)?;
    output::text(&printer.end())?;
    match format {
        Format::Table | Format::Wide => output::text(&exports(&page.entries)),
        Format::Json | Format::Yaml => Ok(()),
    }
}

/// Who is told which path, below the table of the paths.
fn exports(paths: &[BgpPathView]) -> String {
    let mut text = String::new();
    for path in paths {
        let Some(exports) = &path.exports else { continue };
        let of = path.peer.as_ref().map_or_else(|| "the local path".to_owned(), |peer| format!("the path of {peer}"));
        if !exports.advertised_to.is_empty() {
            let _ = writeln!(text, "\nAdvertised to, {of}:");
            for peer in &exports.advertised_to {
                let _ = writeln!(text, "  {peer}");
            }
        }
        if !exports.not_advertised_to.is_empty() {
            let _ = writeln!(text, "\nNot advertised to, {of}:");
            let width = exports.not_advertised_to.iter().map(|it| it.peer.chars().count()).max().unwrap_or_default();
            for withheld in &exports.not_advertised_to {
                let _ = writeln!(text, "  {:<width$}   {}", withheld.peer, withheld.reason);
            }
        }
    }
    text
}

/// `received`
pub(super) fn received(socket: &SocketOptions, format: Format, peer: Option<&str>) -> Result<(), Failure> {
    stream(socket, format, "received", peer, (&PATH, PATH_SHORT), path_cells, split_paths).map(drop)
}

/// `advertised`
pub(super) fn advertised(socket: &SocketOptions, format: Format, peer: Option<&str>) -> Result<(), Failure> {
    let split = |page: BgpAdvertisedPageView| (page.entries, page.next);
    stream(socket, format, "advertised", peer, (&ADVERTISED, ADVERTISED_SHORT), advertised_cells, split).map(drop)
}

/// `messages`
pub(super) fn messages(views: &[BgpMessageView], wide: bool) -> String {
    let heading = ["TIME", "DIRECTION", "TYPE", "LENGTH", "TEXT", "OCTETS"];
    let keep = if wide { heading.len() } else { heading.len() - 1 };
    let row = |view: &BgpMessageView| {
        let mut row = vec![
            format!("{:.3}", view.at),
            optional(view.direction.as_ref()),
            view.kind.to_uppercase().replace('_', "-"),
            optional(view.length),
            view.text.clone(),
            optional(view.octets.as_ref()),
        ];
        row.truncate(keep);
        row
    };
    output::columns(&heading[..keep], views.iter().map(row).collect())
}

fn split_paths(page: BgpPathsView) -> (Vec<BgpPathView>, Option<String>) {
    (page.entries, page.next)
}

/// Asks for page after page and prints each; returns how many rows there were.
fn stream<P: DeserializeOwned, T: Serialize>(
    socket: &SocketOptions,
    format: Format,
    table: &str,
    name: Option<&str>,
    (heading, short): (&[&str], usize),
    cells: fn(&T) -> Vec<String>,
    split: impl Fn(P) -> (Vec<T>, Option<String>),
) -> Result<usize, Failure> {
    let name = name.map(|name| format!("name={}&", encode(name))).unwrap_or_default();
    block_on(async {
        let mut printer = Printer::new(format, heading, short);
        let mut from: Option<String> = None;
        loop {
            let from_query = from.as_ref().map(|from| format!("from={}", encode(from))).unwrap_or_default();
            let page: P = socket.get(&format!("/v1/bgp/{table}?{name}{from_query}")).await?;
            let (entries, next) = split(page);
            output::text(&printer.page(&entries, cells)?)?;
            match next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        output::text(&printer.end())?;
        Ok(printer.rows)
    })?
}

/// Turns pages into one text.
struct Printer<'a> {
    format: Format,
    heading: &'a [&'a str],
    widths: Vec<usize>,
    rows: usize,
    begun: bool,
}

impl<'a> Printer<'a> {
    fn new(format: Format, heading: &'a [&'a str], short: usize) -> Self {
        let heading = if format == Format::Wide { heading } else { &heading[..short] };
        let widths = heading.iter().map(|name| name.chars().count()).collect();
        Self { format, heading, widths, rows: 0, begun: false }
    }

    fn page<T: Serialize>(&mut self, entries: &[T], cells: fn(&T) -> Vec<String>) -> Result<String, Failure> {
        let mut text = String::new();
        match self.format {
            Format::Table | Format::Wide => {
                // An empty cell would make the columns hard to read by eye and by awk.
                let filled = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
                let rows: Vec<Vec<String>> =
                    entries.iter().map(|entry| cells(entry).into_iter().map(filled).collect()).collect();
                for row in &rows {
                    for (width, cell) in self.widths.iter_mut().zip(row) {
                        *width = (*width).max(cell.chars().count());
                    }
                }
                if !self.begun && !rows.is_empty() {
                    let heading: Vec<String> = self.heading.iter().map(|name| (*name).to_owned()).collect();
                    self.line(&mut text, &heading);
                }
                rows.iter().for_each(|row| self.line(&mut text, row));
            }
            Format::Json => {
                for (at, entry) in entries.iter().enumerate() {
                    let entry = serde_json::to_string_pretty(entry)
                        .map_err(|error| Failure::message(format!("failed to print the result as JSON: {error}")))?;
                    text.push_str(if self.begun || at > 0 { ",\n  " } else { "[\n  " });
                    text.push_str(&entry.replace('\n', "\n  "));
                }
            }
            Format::Yaml if !entries.is_empty() => {
                text = output::yaml_text(&entries)
                    .map_err(|error| Failure::message(format!("failed to print the result as YAML: {error}")))?;
            }
            Format::Yaml => {}
        }
        self.begun |= !entries.is_empty();
        self.rows += entries.len();
        Ok(text)
    }

    fn end(&self) -> String {
        match (self.format, self.begun) {
            (Format::Json, true) => "\n]\n".to_owned(),
            (Format::Json | Format::Yaml, false) => "[]\n".to_owned(),
            (Format::Table | Format::Wide, false) => format!("{}\n", self.heading.join("   ")),
            (Format::Yaml | Format::Table | Format::Wide, true) => String::new(),
        }
    }

    /// Columns get wider from page to page and never narrower.
    fn line(&self, text: &mut String, cells: &[String]) {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&self.widths) {
            let _ = write!(line, "{cell:<width$}   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

fn path_cells(view: &BgpPathView) -> Vec<String> {
    let of = &view.attributes;
    vec![
        mark(view).to_owned(),
        view.prefix.to_string(),
        optional(of.next_hop.as_ref()),
        view.peer.clone().unwrap_or_else(|| "local".to_owned()),
        optional(of.med),
        optional(of.local_pref),
        of.as_path.clone(),
        of.origin.clone(),
        match (view.long_lived_stale, view.stale) {
            (true, _) => format!("{}, long-lived stale", view.reason),
            (false, true) => format!("{}, stale", view.reason),
            (false, false) => view.reason.clone(),
        },
        communities(of),
        other(of),
        view.path_id.to_string(),
        format!("{:.0}", view.since),
    ]
}

fn advertised_cells(view: &BgpAdvertisedView) -> Vec<String> {
    let of = &view.attributes;
    vec![
        view.peer.clone(),
        view.prefix.to_string(),
        optional(of.next_hop.as_ref()),
        optional(of.med),
        optional(of.local_pref),
        of.as_path.clone(),
        of.origin.clone(),
        view.source.clone().unwrap_or_else(|| "local".to_owned()),
        communities(of),
        other(of),
        view.path_id.to_string(),
    ]
}

/// The marks of FRR: `*` valid, `>` best, `=` multipath; `x` stands for what was not accepted.
fn mark(view: &BgpPathView) -> &'static str {
    match view.status.as_str() {
        "best" => "*>",
        "multipath" => "*=",
        "lost" => "*",
        "rejected" => "x",
        _ => "?",
    }
}

fn communities(of: &BgpAttributesView) -> String {
    let all = of.communities.iter().chain(&of.large_communities).chain(&of.extended_communities);
    all.map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn other(of: &BgpAttributesView) -> String {
    let one = |of: &crate::api::bgp_paths_view::BgpAttributeView| format!("{} {}", of.name, of.text).trim().to_owned();
    of.attributes.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn optional(value: Option<impl Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(prefix: &str, status: &str, reason: &str) -> BgpPathView {
        let value = serde_json::json!({
            "prefix": prefix, "peer": "192.0.2.2", "path_id": 0, "since": "2026-01-01T00:00:00Z", "best": status == "best",
            "accepted": status != "rejected", "stale": false, "long_lived_stale": false, "status": status, "reason": reason,
            "step": null, "rule": null, "next_hop": "192.0.2.2", "next_hop_link_local": null, "origin": "igp", "as_path": "65002 65003", "med": 5,
            "local_pref": null, "communities": ["65001:7"], "extended_communities": [], "large_communities": ["1:2:3"],
            "attributes": [],
        });
        serde_json::from_value(value).expect("a path")
    }

    fn printed(format: Format, pages: &[&[BgpPathView]]) -> String {
        let mut printer = Printer::new(format, &PATH, PATH_SHORT);
        let mut text: String = pages.iter().map(|page| printer.page(page, path_cells).expect("a page")).collect();
        text.push_str(&printer.end());
        text
    }

    #[test]
    fn pages_become_one_list() {
        let first = [path("198.51.100.0/24", "best", "best")];
        let second =
            [path("198.51.100.0/24", "lost", "lost by MED"), path("203.0.113.0/24", "rejected", "rejected: x")];
        let pages: [&[BgpPathView]; 3] = [&first, &[], &second];
        let json: Vec<BgpPathView> = serde_json::from_str(&printed(Format::Json, &pages)).expect("JSON");
        assert_eq!(json.len(), 3);
        assert_eq!(serde_json::to_string_pretty(&json).expect("JSON") + "\n", printed(Format::Json, &pages));
        assert_eq!(printed(Format::Yaml, &pages).matches("prefix:").count(), 3);
        let table = printed(Format::Table, &pages);
        let marks: Vec<&str> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(marks, ["ST", "*>", "*", "x"]);
        assert!(table.lines().nth(2).is_some_and(|line| line.ends_with("lost by MED")), "{table}");
        assert!(printed(Format::Wide, &pages).contains("65001:7 1:2:3"));
    }

    #[test]
    fn who_is_told_stands_below_the_paths() {
        let mut best = path("198.51.100.0/24", "best", "best");
        let withheld = |peer: &str, reason: &str| crate::api::bgp_paths_view::BgpWithheldView {
            peer: peer.to_owned(),
            reason: reason.to_owned(),
            rule: None,
        };
        best.exports = Some(crate::api::bgp_paths_view::BgpExportsView {
            advertised_to: vec!["192.0.2.3".to_owned()],
            not_advertised_to: vec![withheld("192.0.2.2", "came from this peer"), withheld("eth0", "NO_EXPORT")],
        });
        let lost = path("198.51.100.0/24", "lost", "lost by MED");
        let text = exports(&[best, lost]);
        let wanted = "\nAdvertised to, the path of 192.0.2.2:\n  192.0.2.3\n\nNot advertised to, the path of 192.0.2.2:\n  \
                      192.0.2.2   came from this peer\n  eth0        NO_EXPORT\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn nothing_is_an_empty_list() {
        assert_eq!(printed(Format::Json, &[&[]]), "[]\n");
        assert_eq!(printed(Format::Yaml, &[&[]]), "[]\n");
        assert!(printed(Format::Table, &[&[]]).starts_with("ST   NETWORK"));
    }
}
