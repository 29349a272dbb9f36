//! Benchmarks against peers on the same machine in the same run; `make bench` calls it.
//!
//! Each benchmark prints its figures side by side and writes `target/bench/NAME.json`. Rounds of ours and of the peers are
//! interleaved, so that a busy moment of the machine hits all of them; what counts is the median.

mod bgp;
mod mesh;
mod report;
mod routes;

use std::process::ExitCode;

/// Measures and reports.
type Benchmark = fn() -> anyhow::Result<report::Report>;

/// Name and body of every benchmark.
const ALL: [(&str, Benchmark); 3] = [("routes", routes::run), ("mesh", mesh::run), ("bgp", bgp::run)];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| ALL.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        eprintln!("bench: unknown benchmark {unknown}\nhint: one of {}", known.join(", "));
        return ExitCode::from(64);
    }
    for (name, body) in ALL.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name)) {
        println!("bench {name}");
        if let Err(error) = body().and_then(|report| report.write(name)) {
            eprintln!("bench {name}: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
