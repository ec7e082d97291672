//! The only package with unsafe code: namespaces, mounts, credentials, descriptors.
pub mod caps;
pub mod copy;
pub mod lease;
pub mod loopdev;
pub mod mount;
pub mod ns;
pub mod openat;
pub mod peer;
pub mod proc;
pub mod scm;
pub mod spawn;
pub mod userns;
