//! Proxies: the daemon's own settings, never a request's.

use std::{fmt, net::IpAddr};

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::error::RegistryError;

/// Proxy settings as the three well-known variables give them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Proxies {
    /// URL for plain `http` targets (`HTTP_PROXY`).
    pub http: Option<String>,
    /// URL for `https` targets (`HTTPS_PROXY`).
    pub https: Option<String>,
    /// Comma list of what is reached directly (`NO_PROXY`): `*`, addresses,
    /// networks in CIDR form, domains, each with an optional `:port`.
    pub no_proxy: String,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A proxy's URL may hold a password.
        f.debug_struct("Proxies")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// [`Proxies`] parsed.
#[derive(Clone)]
pub(crate) struct ProxyRules {
    http: Option<Url>,
    https: Option<Url>,
    direct: Vec<Direct>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Direct {
    what: What,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Everything,
    Network(IpAddr, u8),
    /// A domain; with the flag, the domain itself counts too and not only what
    /// is below it.
    Domain(String, bool),
}

impl ProxyRules {
    pub(crate) fn parse(proxies: &Proxies) -> Result<Self, RegistryError> {
        Ok(Self {
            http: parse_proxy(proxies.http.as_deref())?,
            https: parse_proxy(proxies.https.as_deref())?,
            direct: proxies.no_proxy.split(',').filter_map(parse_direct).collect(),
        })
    }

    /// The proxy for `target`, or `None` for a direct connection.
    pub(crate) fn proxy_for(&self, target: &Url) -> Option<&Url> {
        let proxy = match target.scheme() {
            "https" => self.https.as_ref()?,
            _ => self.http.as_ref()?,
        };
        let host = bare_host(target)?;
        // A proxy's loopback is not ours, so asking one for it makes no sense.
        let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let port = target.port_or_known_default();
        (!is_local && !self.direct.iter().any(|direct| direct.covers(&host, port))).then_some(proxy)
    }

    /// Hosts of the proxies themselves, which the administrator chose and which
    /// may therefore lie anywhere.
    pub(crate) fn hosts(&self) -> Vec<String> {
        [&self.http, &self.https].into_iter().flatten().filter_map(bare_host).collect()
    }
}

impl Direct {
    fn covers(&self, host: &str, port: Option<u16>) -> bool {
        if self.port.is_some() && self.port != port {
            return false;
        }
        match &self.what {
            What::Everything => true,
            What::Network(network, bits) => host.parse().is_ok_and(|ip| in_network(ip, *network, *bits)),
            What::Domain(domain, itself) => match host.strip_suffix(domain.as_str()) {
                Some("") => *itself,
                Some(front) => front.ends_with('.'),
                None => false,
            },
        }
    }
}

/// Host of `url` in lower case, without the brackets of an IPv6 address and
/// without a final dot.
pub(crate) fn bare_host(url: &Url) -> Option<String> {
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    Some(host.to_ascii_lowercase())
}

fn parse_proxy(text: Option<&str>) -> Result<Option<Url>, RegistryError> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let bad = |reason: &str| RegistryError::BadOption { option: "proxy", reason: reason.to_owned() };
    let url = Url::parse(&with_scheme).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h") {
        return Err(bad("only http, https, socks5 and socks5h proxies are known"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("it names no host"));
    }
    Ok(Some(url))
}

fn parse_direct(entry: &str) -> Option<Direct> {
    let entry = entry.trim().to_ascii_lowercase();
    if entry.is_empty() {
        return None;
    }
    if entry == "*" {
        return Some(Direct { what: What::Everything, port: None });
    }
    if let Some((address, bits)) = entry.split_once('/') {
        let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
        let width = if address.is_ipv4() { 32 } else { 128 };
        return (bits <= width).then_some(Direct { what: What::Network(address, bits), port: None });
    }
    let (host, port) = split_port(&entry);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse::<IpAddr>() {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        return Some(Direct { what: What::Network(address, bits), port });
    }
    let below = host.strip_prefix("*.").or_else(|| host.strip_prefix('.'));
    let domain = below.unwrap_or(host).trim_end_matches('.');
    (!domain.is_empty()).then(|| Direct { what: What::Domain(domain.to_owned(), below.is_none()), port })
}

fn split_port(entry: &str) -> (&str, Option<u16>) {
    match entry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (entry, None),
        },
        _ => (entry, None),
    }
}

fn in_network(ip: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            ip.to_bits() & mask == network.to_bits() & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            ip.to_bits() & mask == network.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(no_proxy: &str) -> ProxyRules {
        ProxyRules::parse(&Proxies {
            http: Some("proxy.example:3128".into()),
            https: Some("http://user:pw@proxy.example:3129".into()),
            no_proxy: no_proxy.into(),
        })
        .expect("good settings")
    }

    #[test]
    fn no_proxy_entries_mean_what_they_mean_elsewhere() {
        let cases = [
            ("", "https://a.example/", true),
            ("*", "https://a.example/", false),
            ("a.example", "https://a.example/", false),
            ("A.Example", "https://x.a.example/", false),
            ("a.example", "https://ba.example/", true),
            (".a.example", "https://a.example/", true),
            (".a.example", "https://x.a.example/", false),
            ("*.a.example", "https://x.a.example/", false),
            ("a.example:8443", "https://a.example/", true),
            ("a.example:443", "https://a.example/", false),
            ("10.0.0.0/8", "http://10.1.2.3/", false),
            ("10.0.0.0/8", "http://11.1.2.3/", true),
            ("0.0.0.0/0", "http://11.1.2.3/", false),
            ("fd00::/8", "http://[fd12::1]:5000/", false),
            ("[fd12::1]:5000", "http://[fd12::1]:5000/", false),
            ("192.0.2.7", "http://192.0.2.7:81/", false),
            ("x, ,192.0.2.7:80", "http://192.0.2.7:81/", true),
            ("", "http://localhost:5000/", false),
            ("", "http://127.0.0.9/", false),
            ("", "http://[::1]:5000/", false),
        ];
        for (list, url, proxied) in cases {
            let url = Url::parse(url).unwrap();
            assert_eq!(rules(list).proxy_for(&url).is_some(), proxied, "{list:?} {url}");
        }
    }

    #[test]
    fn schemes_choose_their_proxy_and_secrets_stay_hidden() {
        let rules = rules("");
        let port = |url: &str| rules.proxy_for(&Url::parse(url).unwrap()).and_then(Url::port);
        assert_eq!(port("http://a.example/"), Some(3128));
        assert_eq!(port("https://a.example/"), Some(3129));
        let proxies = Proxies { https: Some("http://user:hunter2@p".into()), ..Proxies::default() };
        assert!(!format!("{proxies:?}").contains("hunter2"));
        for bad in ["ftp://x", "http://", "http://["] {
            let proxies = Proxies { http: Some(bad.into()), ..Proxies::default() };
            assert!(ProxyRules::parse(&proxies).is_err(), "accepted {bad}");
        }
    }
}
