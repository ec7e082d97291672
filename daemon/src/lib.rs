//! The daemon: configuration, sockets, callers, and the services that pass
//! requests on to the engine.
//!
//! What a request means and who may do what is the engine's business; nothing
//! here reads a byte of an image.
#![forbid(unsafe_code)]

mod activity;
pub mod config;
mod connection;
pub mod logs;
mod manager;
pub mod manual;
mod mount_socket;
mod mounts;
mod reload;
mod server;
mod service;
mod settings;
mod sockets;
mod subordinate;
mod wire;

pub use config::{Config, ConfigError};
pub use connection::group_id;
pub use manager::Manager;
pub use mounts::{PreparedMounts, prepare_mounts};
pub use reload::Reloader;
pub use server::{Ended, ServeError, ServerOptions, serve};
pub use settings::{Arguments, Internal, Mode, Settings, SettingsError};
pub use sockets::{SocketError, Sockets};
pub use wire::parse_open_message;
