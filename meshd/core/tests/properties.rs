//! Laws of the pure core, checked on random inputs.

mod properties {
    mod derive;
    mod masquerade;
    mod owners;
    mod plan;
    mod table;
}
