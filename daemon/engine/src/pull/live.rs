//! Options that change while the broker runs.

use std::{
    ops::Deref,
    sync::{Arc, PoisonError, RwLock},
};

use super::{Broker, BrokerOptions, Inner};
use crate::{Failure, job::protocol::Base64};

/// The options in force.
#[derive(Debug)]
pub(super) struct Live(RwLock<Arc<InForce>>);

/// Options, and what was read because of them.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) options: BrokerOptions,
    /// Certificates of [`Network`](super::Network).
    pub(super) ca_pem: Vec<Base64>,
}

impl InForce {
    fn new(options: BrokerOptions) -> Result<Self, Failure> {
        let ca_pem = options.read_ca_files()?;
        Ok(Self { options, ca_pem })
    }
}

impl Live {
    pub(super) fn new(options: BrokerOptions) -> Result<Self, Failure> {
        Ok(Self(RwLock::new(Arc::new(InForce::new(options)?))))
    }

    /// What is in force at this moment; who needs two options that belong
    /// together asks once.
    pub(super) fn get(&self) -> Arc<InForce> {
        // Replaced as a whole, so it is right whatever panicked.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, in_force: InForce) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(in_force);
    }
}

/// The options in force, held.
pub(super) struct Options(Arc<InForce>);

impl Deref for Options {
    type Target = BrokerOptions;

    fn deref(&self) -> &BrokerOptions {
        &self.0.options
    }
}

impl Inner {
    pub(super) fn options(&self) -> Options {
        Options(self.live.get())
    }
}

impl Broker {
    /// Goes by other options from now on. Jobs that run, and leases that were
    /// granted, keep what they began with. The cache's folder, the mode and
    /// the user of jobs stay as they were when the broker was opened.
    ///
    /// # Errors
    /// If a certificate file cannot be read; the old options stay in force.
    pub fn reconfigure(&self, options: BrokerOptions) -> Result<(), Failure> {
        let inner = &self.inner;
        let in_force = InForce::new(options)?;
        let options = &in_force.options;
        inner.cache.adjust(options.min_free_percent, options.keep_blobs);
        inner.layer_slots.resize(options.max_layer_jobs.max(1));
        inner.live.set(in_force);
        Ok(())
    }

    /// Returns when the broker could take on work: a thread for blocking work
    /// was free, and everything that requests wait for could be had. A broker
    /// in which that takes for ever is stuck.
    pub async fn answer(&self) {
        self.inner.roster.pulling();
        let inner = Arc::clone(&self.inner);
        let answered = tokio::task::spawn_blocking(move || {
            inner.cache.answer();
            if let Ok(mounts) = &inner.mounts {
                drop(mounts.list());
                mounts.helper_pid();
            }
        });
        // It cannot fail but by a panic, which is no sign of being stuck.
        let _ = answered.await;
    }
}
