//! Replays the committed corpus of every fuzz target.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::{fs, path::Path};

#[test]
fn every_input_of_the_corpus_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, _) in bodies::ALL {
        let folder = corpus.join(target);
        let mut inputs: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("failed to list {}: {error}", folder.display()))
            .map(|entry| entry.expect("a folder entry").path())
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{target} has no corpus");
        for input in inputs {
            let data = fs::read(&input).expect("a readable input");
            // A panic below is reported after this line, which nextest shows for a failed test.
            eprintln!("{}", input.display());
            bodies::run(target, &data);
        }
    }
}
