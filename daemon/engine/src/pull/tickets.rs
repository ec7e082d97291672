//! One-time tickets: how the answer of a pull becomes a descriptor.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{Caller, Failure, Opened, Ticket};

/// How long a client may take to fetch what it pulled.
pub(crate) const LIFETIME: Duration = Duration::from_secs(60);

/// Tickets of one user at the same time; each holds a descriptor.
const MAX_PER_USER: usize = 64;

/// Tickets that have been handed out and not used.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Mutex<HashMap<Ticket, Held>>);

#[derive(Debug)]
struct Held {
    uid: u32,
    account: u32,
    until: Instant,
    opened: Opened,
}

impl Tickets {
    fn held(&self) -> MutexGuard<'_, HashMap<Ticket, Held>> {
        // Each change of the map is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a ticket with which `caller` can get `opened` once.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub(crate) fn issue(&self, caller: Caller, opened: Opened) -> Result<Ticket, Failure> {
        let mut bytes = [0; 16];
        // Never short: the kernel guarantees up to 256 bytes at once.
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| Failure::io("cannot make a ticket", &errno.into()))?;
        let ticket = Ticket(bytes);
        let mut held = self.held();
        Self::sweep(&mut held);
        let own = held.iter().filter(|(_, held)| held.account == caller.account);
        if own.clone().count() >= MAX_PER_USER
            && let Some(oldest) = own.min_by_key(|(_, held)| held.until).map(|(ticket, _)| *ticket)
        {
            held.remove(&oldest);
        }
        held.insert(
            ticket,
            Held { uid: caller.uid, account: caller.account, until: Instant::now() + LIFETIME, opened },
        );
        Ok(ticket)
    }

    /// Takes what a ticket is for. A ticket of another user stays valid.
    pub(crate) fn redeem(&self, uid: u32, ticket: &Ticket) -> Option<Opened> {
        let mut held = self.held();
        Self::sweep(&mut held);
        if held.get(ticket)?.uid != uid {
            return None;
        }
        held.remove(ticket).map(|held| held.opened)
    }

    /// Forgets what is too old, and closes its descriptors.
    pub(crate) fn expire(&self) {
        Self::sweep(&mut self.held());
    }

    /// Forgets everything.
    pub(crate) fn expire_all(&self) {
        self.held().clear();
    }

    fn sweep(held: &mut HashMap<Ticket, Held>) {
        let now = Instant::now();
        held.retain(|_, held| held.until > now);
    }
}

#[cfg(test)]
mod tests {
    use sctl_common::{Digest, Reference};

    use super::*;

    fn opened() -> Opened {
        Opened::new(
            std::fs::File::open("/dev/null").unwrap(),
            Digest::of(b""),
            Reference::parse("a").unwrap(),
            "/x".into(),
        )
    }

    #[test]
    fn a_ticket_is_for_one_user_and_one_time() {
        let tickets = Tickets::default();
        let ticket = tickets.issue(Caller::user(1), opened()).unwrap();
        assert!(tickets.redeem(2, &ticket).is_none(), "somebody else's");
        assert!(tickets.redeem(1, &ticket).is_some());
        assert!(tickets.redeem(1, &ticket).is_none(), "used");
        assert!(tickets.redeem(1, &Ticket([0; 16])).is_none(), "guessed");
    }

    #[test]
    fn old_tickets_are_worth_nothing() {
        let tickets = Tickets::default();
        let ticket = tickets.issue(Caller::user(1), opened()).unwrap();
        tickets.held().get_mut(&ticket).unwrap().until = Instant::now();
        assert!(tickets.redeem(1, &ticket).is_none());
        tickets.expire();
        assert!(tickets.held().is_empty());
    }

    #[test]
    fn one_user_holds_so_many_and_no_more() {
        let tickets = Tickets::default();
        let other = tickets.issue(Caller::user(2), opened()).unwrap();
        let first = tickets.issue(Caller::user(1), opened()).unwrap();
        let last = (0..MAX_PER_USER).map(|_| tickets.issue(Caller::user(1), opened()).unwrap()).last().unwrap();
        assert_eq!(tickets.held().len(), MAX_PER_USER + 1);
        assert!(tickets.redeem(1, &first).is_none() && tickets.redeem(1, &last).is_some());
        assert!(tickets.redeem(2, &other).is_some());
    }
}
