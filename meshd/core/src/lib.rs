//! What should this node look like?
//!
//! This crate answers that question and nothing else. It holds the tables, the pure functions from observed tables to
//! desired tables, the plan from desired and actual to actions, and the codec of the ClusterMesh records. It has no
//! runtime, socket, clock or random source: time is an argument, and every decision can be replayed from its inputs.
//!
//! Reading order follows the flow: [`id`] (names and ownership marks), [`table`] (rows with revisions),
//! [`observed`] (what sources say), [`derive`] (observed to desired), [`desired`] (what we want), [`plan`] (desired
//! against actual). [`maglev`] chooses backends of services, [`probe`] tells which paths work. [`clustermesh`] turns foreign bytes into observed rows and refuses what must not be believed.
#![forbid(unsafe_code)]

pub mod clustermesh;
pub mod derive;
pub mod desired;
pub mod id;
pub mod maglev;
pub mod observed;
pub mod plan;
pub mod probe;
pub mod table;
