//! The files of the lab and the command that reads them, as a user meets them. Nothing here needs root.

mod command {
    mod schema;
    mod verbs;
}
