//! Whole-system tests and their harness.
//!
//! The harness runs the programs as hosts and users do: a root daemon on
//! sockets in a folder of its own, clients as unprivileged users, a real
//! registry on loopback, and images made byte by byte. The tests themselves
//! are one binary, `tests/whole`, with a module per subject.
#![forbid(unsafe_code)]

pub mod corpus;
pub mod daemon;
pub mod debian;
pub mod hub;
pub mod image;
pub mod layer;
pub mod machine;
pub mod programs;
pub mod registry;
pub mod sif;
pub mod tree;
