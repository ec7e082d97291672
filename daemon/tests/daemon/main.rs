//! The daemon through its sockets: with an engine of the test's own, and as a
//! program with its jobs.

mod fake;
mod jobs;
mod launcher;
mod manager;
mod mount;
mod program;
mod service;
