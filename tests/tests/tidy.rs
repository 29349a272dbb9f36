//! The rules of the repository, as tests: what a reviewer would otherwise have to remember.
//!
//! Each rule is a function from files or from cargo's metadata to findings. One test applies it to the tree and must find
//! nothing; another applies it to something small and bad and must find it, because a rule that cannot fail is worth
//! nothing. What clippy can say, clippy says (`Cargo.toml`, `clippy.toml`).

mod tidy {
    mod dependencies;
    mod documents;
    mod metadata;
    mod purity;
    mod rooms;
    mod sources;
    mod tree;
}
