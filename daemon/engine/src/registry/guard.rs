//! Where a registry may send us: not into networks that only we can reach.
//!
//! A registry names further servers: token servers, object stores, URLs of
//! foreign layers. The daemon stands in a network that the registry's owner
//! cannot see, so such a name must not lead to a metadata service or to a
//! neighbour on loopback. Addresses are classed, and a target's class must be
//! one in which the registry itself lies, or the public one. The check is made
//! on the addresses that the connection uses, after name resolution, so a name
//! that changes its address between check and use gains nothing. Behind a proxy
//! names are resolved there, and only addresses in URLs can be checked.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

use super::proxy::bare_host;

/// How far an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AddressClass {
    Public,
    /// RFC 1918, carrier NAT, unique local.
    Private,
    /// This machine.
    Loopback,
    /// 169.254/16 and fe80::/10: cloud metadata services live here.
    LinkLocal,
    /// Multicast, broadcast, reserved: no server is there.
    Never,
}

/// Why a target was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{host} has a private address, and the registry does not")]
    Address { host: String },
    #[error("its scheme is {scheme:?}, not https")]
    Scheme { scheme: String },
    #[error("it names the proxy itself")]
    Proxy,
    #[error("it names no host")]
    NoHost,
}

/// The rules for one registry.
#[derive(Debug)]
pub(crate) struct Guard {
    registry_host: String,
    proxy_hosts: Vec<String>,
    allow_private: bool,
    /// Classes in which the registry lay when its name was first resolved.
    registry_classes: Mutex<Option<BTreeSet<AddressClass>>>,
}

impl Guard {
    /// Makes the rules for `registry_host`, a bare host.
    pub(crate) fn new(registry_host: String, proxy_hosts: Vec<String>, allow_private: bool) -> Self {
        let literal = registry_host.parse::<IpAddr>().ok().map(|ip| BTreeSet::from([classify(ip)]));
        Self { registry_host, proxy_hosts, allow_private, registry_classes: Mutex::new(literal) }
    }

    /// Checks what can be seen of `target` before its name is resolved.
    ///
    /// `plain_allowed` says whether the registry itself is spoken to without
    /// TLS; `proxied` whether a proxy resolves the name.
    pub(crate) async fn check(&self, target: &Url, plain_allowed: bool, proxied: bool) -> Result<(), Refusal> {
        let host = bare_host(target).filter(|host| !host.is_empty()).ok_or(Refusal::NoHost)?;
        match target.scheme() {
            "https" => {}
            "http" if plain_allowed => {}
            scheme => return Err(Refusal::Scheme { scheme: scheme.to_owned() }),
        }
        if host == self.registry_host || self.allow_private {
            return Ok(());
        }
        if self.proxy_hosts.contains(&host) {
            return Err(Refusal::Proxy);
        }
        if let Ok(ip) = host.parse::<IpAddr>() {
            if !proxied && classify(ip) != AddressClass::Public {
                self.pin().await;
            }
            return if self.permits(ip) { Ok(()) } else { Err(Refusal::Address { host }) };
        }
        // A proxy would resolve the name, and this one means the proxy itself.
        if proxied && (host == "localhost" || host.ends_with(".localhost")) {
            return Err(Refusal::Address { host });
        }
        Ok(())
    }

    /// Finds out where the registry lies, if nobody has asked for it yet: a
    /// job that begins with renewing a token meets the token server first.
    async fn pin(&self) {
        if self.classes().is_some() {
            return;
        }
        // A name that cannot be resolved now vouches for nobody.
        if let Ok(found) = tokio::net::lookup_host((self.registry_host.as_str(), 0)).await {
            let found: BTreeSet<_> = found.map(|address| classify(address.ip())).collect();
            self.classes().get_or_insert(found);
        }
    }

    fn classes(&self) -> MutexGuard<'_, Option<BTreeSet<AddressClass>>> {
        self.registry_classes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn permits(&self, ip: IpAddr) -> bool {
        match classify(ip) {
            AddressClass::Never => false,
            AddressClass::Public => true,
            class => {
                // Who is on this machine may also name its neighbours.
                self.classes().as_ref().is_some_and(|classes| {
                    classes.contains(&class)
                        || (class == AddressClass::Private && classes.contains(&AddressClass::Loopback))
                })
            }
        }
    }

    /// Keeps of `found` what `host` may be reached at.
    fn filter(&self, host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refusal> {
        if self.allow_private || self.proxy_hosts.iter().any(|proxy| proxy == host) {
            return Ok(found);
        }
        if host == self.registry_host {
            let classes = || found.iter().map(|address| classify(address.ip())).collect();
            self.classes().get_or_insert_with(classes);
        }
        let good: Vec<SocketAddr> = found.into_iter().filter(|address| self.permits(address.ip())).collect();
        if good.is_empty() { Err(Refusal::Address { host: host.to_owned() }) } else { Ok(good) }
    }
}

/// Resolves names for the HTTP client and drops addresses that the rules
/// forbid.
pub(crate) struct GuardedResolver(pub(crate) Arc<Guard>);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Arc::clone(&self.0);
        Box::pin(async move {
            let host = name.as_str().trim_end_matches('.').to_ascii_lowercase();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0))
                .await
                .map_err(|source| UnknownHost { host: host.clone(), source })?
                .collect();
            if host != guard.registry_host {
                guard.pin().await;
            }
            let good = guard.filter(&host, found)?;
            Ok(Box::new(good.into_iter()) as Addrs)
        })
    }
}

/// A name without addresses; recognised again in the chain of causes.
#[derive(Debug, thiserror::Error)]
#[error("cannot resolve {host}")]
pub(crate) struct UnknownHost {
    pub(crate) host: String,
    #[source]
    pub(crate) source: io::Error,
}

/// Says how far `ip` reaches; addresses that carry an IPv4 address inside are
/// classed by that.
///
/// # Source
/// IANA's special-purpose address registries (RFC 6890 and its updates).
pub(crate) fn classify(ip: IpAddr) -> AddressClass {
    match ip {
        IpAddr::V4(v4) => classify_v4(v4),
        IpAddr::V6(v6) => match embedded_v4(v6) {
            Some(v4) => classify_v4(v4),
            None => classify_v6(v6),
        },
    }
}

fn classify_v4(ip: Ipv4Addr) -> AddressClass {
    match ip.octets() {
        // On Linux 0.0.0.0 connects to this machine; so may the rest of 0/8.
        [0 | 127, ..] => AddressClass::Loopback,
        [169, 254, ..] => AddressClass::LinkLocal,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [198, 18..=19, ..] => {
            AddressClass::Private
        }
        [192, 0, 0, _] => AddressClass::Private,
        [224..=255, ..] => AddressClass::Never,
        _ => AddressClass::Public,
    }
}

fn classify_v6(ip: Ipv6Addr) -> AddressClass {
    if ip.is_loopback() || ip.is_unspecified() {
        return AddressClass::Loopback;
    }
    match ip.segments()[0] {
        0xfe80..=0xfebf => AddressClass::LinkLocal,
        // Unique local, and the site-local addresses of old.
        0xfc00..=0xfdff | 0xfec0..=0xfeff => AddressClass::Private,
        0xff00.. => AddressClass::Never,
        _ => AddressClass::Public,
    }
}

/// IPv4 inside IPv6: mapped, compatible, NAT64 and 6to4.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(from(high, low)),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(from(high, low)),
        [0x2002, high, low, ..] => Some(from(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_classed() {
        use AddressClass::*;
        let cases = [
            ("8.8.8.8", Public),
            ("10.1.2.3", Private),
            ("172.15.0.1", Public),
            ("172.31.0.1", Private),
            ("192.168.1.1", Private),
            ("100.100.0.1", Private),
            ("127.9.9.9", Loopback),
            ("0.0.0.0", Loopback),
            ("169.254.169.254", LinkLocal),
            ("224.0.0.1", Never),
            ("255.255.255.255", Never),
            ("::1", Loopback),
            ("::", Loopback),
            ("fe80::1", LinkLocal),
            ("fd00:ec2::254", Private),
            ("2001:db8::1", Public),
            ("ff02::1", Never),
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:169.254.169.254", LinkLocal),
            ("64:ff9b::a9fe:a9fe", LinkLocal),
            ("2002:7f00:1::", Loopback),
        ];
        for (text, class) in cases {
            assert_eq!(classify(text.parse().unwrap()), class, "{text}");
        }
    }

    fn check(guard: &Guard, target: &str, plain: bool) -> Result<(), Refusal> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(guard.check(&Url::parse(target).unwrap(), plain, false))
    }

    #[test]
    fn targets_lie_where_the_registry_lies() {
        let cases = [
            // registry, target, plain allowed, good
            ("8.8.8.8", "https://1.1.1.1/x", false, true),
            ("8.8.8.8", "http://1.1.1.1/x", false, false),
            ("8.8.8.8", "http://1.1.1.1/x", true, true),
            ("8.8.8.8", "https://127.0.0.1/", false, false),
            ("8.8.8.8", "https://169.254.169.254/latest", false, false),
            ("8.8.8.8", "https://10.0.0.1/", false, false),
            ("8.8.8.8", "https://8.8.8.8:444/", false, true),
            ("8.8.8.8", "https://2130706433/", false, false),
            ("8.8.8.8", "ftp://1.1.1.1/", true, false),
            ("10.0.0.5", "https://10.9.9.9/", false, true),
            ("10.0.0.5", "https://127.0.0.1/", false, false),
            ("10.0.0.5", "https://169.254.169.254/", false, false),
            ("127.0.0.1", "http://127.0.0.1:81/", true, true),
            ("127.0.0.1", "http://10.0.0.1/", true, true),
            ("127.0.0.1", "http://169.254.169.254/", true, false),
            ("reg.invalid", "https://10.0.0.1/", false, false),
            ("reg.example", "https://proxy.example/", false, false),
        ];
        for (registry, target, plain, good) in cases {
            let guard = Guard::new(registry.into(), vec!["proxy.example".into()], false);
            let verdict = check(&guard, target, plain);
            assert_eq!(verdict.is_ok(), good, "{registry} -> {target}: {verdict:?}");
        }
        let open = Guard::new("reg.example".into(), vec![], true);
        assert!(check(&open, "https://10.0.0.1/", false).is_ok());
        // A job that meets the token server first.
        assert!(check(&Guard::new("localhost".into(), vec![], false), "https://127.0.0.1:1/", false).is_ok());
    }

    #[test]
    fn resolved_addresses_are_filtered() {
        let address = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let guard = Guard::new("reg.example".into(), vec!["proxy.example".into()], false);
        assert!(guard.filter("cdn.example", vec![address("10.0.0.1")]).is_err());
        let mixed = guard.filter("cdn.example", vec![address("127.0.0.1"), address("8.8.8.8")]).unwrap();
        assert_eq!(mixed, [address("8.8.8.8")]);
        assert!(guard.filter("proxy.example", vec![address("10.0.0.1")]).is_ok());
        // The registry's first answer decides, also for its own later ones.
        assert!(guard.filter("reg.example", vec![address("8.8.4.4")]).is_ok());
        assert!(guard.filter("reg.example", vec![address("127.0.0.1")]).is_err());

        let inside = Guard::new("reg.corp".into(), vec![], false);
        assert!(inside.filter("reg.corp", vec![address("10.0.0.5")]).is_ok());
        assert!(inside.filter("store.corp", vec![address("10.0.0.6")]).is_ok());
        assert!(inside.filter("evil.corp", vec![address("127.0.0.1")]).is_err());
    }
}
