//! meshd joins clusters into one natively routed network.
//!
//! The rooms follow the flow: [`config`] says who we are, [`sources`] bring observed rows, [`pipeline`] turns them into
//! desired rows, [`reconcilers`] make the targets hold them with the hands in [`kernel`] and [`store`]. [`api`] and
//! [`cli`] let people see all of it; [`lifecycle`] starts and stops it, and
//! [`flows`] tells what the kernel's programs say about connections.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod flows;
pub mod fuzzing;
pub mod kernel;
pub mod lifecycle;
pub mod pipeline;
pub mod reconcilers;
pub mod sources;
pub mod speaker;
pub mod state;
pub mod store;
