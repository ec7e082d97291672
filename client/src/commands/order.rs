//! From options to what the daemon is asked for.

use sctl_common::{Compression, Platform, Reference, Uri, UriError};

use super::Context;
use crate::{
    cli::Settings,
    credentials,
    daemon::Order,
    failure::Failure,
    output::{verbose, warning},
};

/// Accounts of Docker Hub that hold the images of one platform.
const PLATFORM_ACCOUNTS: [&str; 10] =
    ["amd64", "arm32v5", "arm32v6", "arm32v7", "arm64v8", "i386", "mips64le", "ppc64le", "riscv64", "s390x"];

/// Understands a source URI.
///
/// # Errors
/// In the wording of the established tools.
pub fn parse_uri(text: &str) -> Result<Uri, Failure> {
    Uri::parse(text).map_err(|error| {
        let failure = Failure::new(error.to_string());
        match &error {
            UriError::Reference { source, .. } => failure.source(source),
            UriError::NoTransport => failure.hint(format!("for an image of a registry, write docker://{text}")),
            UriError::UnsupportedTransport { .. } => failure.hint("only docker:// is supported yet"),
            _ => failure,
        }
    })
}

/// Puts together what is asked of the daemon.
///
/// # Errors
/// Options that make no sense, credentials that cannot be read.
pub fn order(context: &Context<'_>, settings: &Settings, uri: Uri, text: &str) -> Result<Order, Failure> {
    let compression = match settings.text("compression")? {
        Some(text) => Some(text.parse::<Compression>().map_err(|error| Failure::new(error.to_string()))?),
        None => None,
    };
    let platform = platform(settings, &uri.reference)?;
    let credentials = credentials::gather(context.flavour, settings, context.environment, &uri.reference)?;
    if credentials.is_none() {
        verbose!("No credentials for {}: pulling anonymously", uri.reference.registry());
    }
    Ok(Order {
        platform,
        credentials,
        insecure: settings.switch("no-https"),
        compression,
        disable_cache: settings.switch("disable-cache"),
        uri,
        text: text.to_owned(),
    })
}

/// The platform asked for; `None` means the daemon's own.
///
/// # Errors
/// Names that are no platform.
pub fn platform(settings: &Settings, reference: &Reference) -> Result<Option<Platform>, Failure> {
    let parse = |text: &str| text.parse::<Platform>().map(Some).map_err(|error| Failure::new(error.to_string()));
    let (arch, variant) = (settings.text("arch")?, settings.text("arch-variant")?);
    // An account of one platform has nothing else to offer.
    if reference.registry() == "docker.io"
        && let Some(account) = reference.repository().split('/').next()
        && PLATFORM_ACCOUNTS.contains(&account)
    {
        let implied = parse(account)?;
        if arch.is_some() && parse(arch.unwrap_or_default())? != implied {
            warning!("The account {account} holds images of its own platform only: --arch is not used");
        }
        return Ok(implied);
    }
    match (settings.text("platform")?, arch, variant) {
        (Some(platform), _, _) => parse(platform),
        (None, Some(arch), Some(variant)) => parse(&format!("{arch}/{variant}")),
        (None, Some(arch), None) => parse(arch),
        (None, None, Some(variant)) => parse(&format!("{}/{variant}", Platform::host().architecture())),
        (None, None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_fail_in_known_words() {
        for (text, message) in [
            ("x", "No transport type URI supplied"),
            ("library://a/b/c", "Unsupported transport type: library"),
            ("foo://x", "Unsupported transport type: foo"),
            ("docker://UP", "Bad URI docker://UP"),
        ] {
            assert_eq!(parse_uri(text).unwrap_err().message, message, "{text}");
        }
    }

    #[test]
    fn accounts_of_one_platform_decide() {
        let of = |name: &str| platform(&Settings::default(), &Reference::parse(name).unwrap()).unwrap();
        assert_eq!(of("arm64v8/alpine").unwrap().to_string(), "linux/arm64/v8");
        assert_eq!(of("i386/debian").unwrap().to_string(), "linux/386");
        assert_eq!(of("r.example/arm64v8/alpine"), None);
        assert_eq!(of("alpine"), None);
    }
}
