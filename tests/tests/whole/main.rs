//! Whole-system tests: one binary, a module per subject.
//!
//! They run the built programs as root and as the users that
//! `tests/install.sh` makes, against a real registry on loopback.

mod admin;
mod attacks;
mod crash;
mod credentials;
mod failures;
mod hub;
mod mounts;
mod network;
mod oracle;
mod own_sif;
mod pull;
mod systemd;
mod user_daemon;
