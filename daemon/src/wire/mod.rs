//! Wire types inward and outward: the only place that knows both sides.

mod overview;

use std::os::unix::ffi::OsStrExt as _;

use prost::Message as _;
use sctl_common::{ErrorKind, Platform, Reference};
use sctl_engine::{
    Failure, MountWish, NoticeLevel, OpenTarget, Opened, PullEvent, PullJob, Stage, Ticket,
    cache::ImageKey,
    registry::{Credentials, Secret},
};
use sctl_proto::{FailureDetail, MAX_OPEN_MESSAGE, v1};
use tonic::Status;

pub use self::overview::{
    admin_jobs, admin_leases, admin_mounts, admin_unmounted, cache_cleaned, cache_info, cache_list, unmount_target,
};

/// Longest user name, password or token that is accepted.
const MAX_CREDENTIAL: usize = 64 << 10;

/// Names the field of a request that is wrong.
fn bad_field(field: &str, error: impl std::error::Error + 'static) -> Failure {
    Failure::new(ErrorKind::InvalidInput, format!("{field} is not usable")).because(&error)
}

/// Checks a pull request.
///
/// # Errors
/// An `InvalidInput` failure that names the field.
pub fn pull_job(request: v1::PullRequest) -> Result<PullJob, Failure> {
    let reference = Reference::parse(&request.reference).map_err(|error| bad_field("reference", error))?;
    let platform = platform(&request.platform)?;
    let credentials = request.credentials.map(credentials).transpose()?.unwrap_or_default();
    let compression = match request.compression.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|error: sctl_common::ProfileError| bad_field("compression", error))?),
    };
    Ok(PullJob {
        reference,
        platform,
        credentials,
        insecure: request.insecure,
        compression,
        disable_cache: request.disable_cache,
    })
}

fn platform(text: &str) -> Result<Platform, Failure> {
    match text {
        "" => Ok(Platform::host()),
        text => text.parse().map_err(|error: sctl_common::PlatformError| bad_field("platform", error)),
    }
}

fn credentials(message: v1::Credentials) -> Result<Credentials, Failure> {
    use v1::credentials::{Basic, Kind};
    let wrong = |text: &str| Failure::new(ErrorKind::InvalidInput, text);
    let secret = |text: String| {
        if text.len() > MAX_CREDENTIAL {
            Err(wrong("credentials are longer than 64 KiB"))
        } else {
            Ok(Secret::new(text))
        }
    };
    match message.kind {
        Some(Kind::Basic(Basic { username, password })) if username.len() <= MAX_CREDENTIAL => {
            Ok(Credentials::Basic { username, password: secret(password)? })
        }
        Some(Kind::Basic(_)) => Err(wrong("credentials are longer than 64 KiB")),
        Some(Kind::IdentityToken(token)) => Ok(Credentials::IdentityToken { username: None, token: secret(token)? }),
        Some(Kind::RegistryToken(token)) => Ok(Credentials::RegistryToken(secret(token)?)),
        None => Err(wrong("credentials have no kind")),
    }
}

/// Reads a message of mount.sock, of any bytes and length; `None` if it is too
/// long or says nothing.
pub fn parse_open_message(message: &[u8]) -> Option<(OpenTarget, MountWish)> {
    if message.len() > MAX_OPEN_MESSAGE {
        return None;
    }
    v1::OpenRequest::decode(message).ok().and_then(open_request)
}

/// Checks a request of mount.sock; `None` if it says nothing.
fn open_request(request: v1::OpenRequest) -> Option<(OpenTarget, MountWish)> {
    use v1::open_request::What;
    let wish = match v1::MountWish::try_from(request.mount).ok()? {
        v1::MountWish::Unspecified => MountWish::None,
        v1::MountWish::Shared => MountWish::Shared,
        v1::MountWish::Private => MountWish::Private,
    };
    let target = match request.what? {
        What::Ticket(bytes) => OpenTarget::Ticket(Ticket(bytes.as_slice().try_into().ok()?)),
        What::Image(image) => OpenTarget::Image {
            reference: Reference::parse(&image.reference).ok()?,
            platform: platform(&image.platform).ok()?,
        },
        What::Delivered(delivered) => OpenTarget::Delivered {
            reference: Reference::parse(&delivered.reference).ok()?,
            platform: platform(&delivered.platform).ok()?,
            key: ImageKey::parse(&delivered.image_key)?,
        },
    };
    Some((target, wish))
}

/// The answer that goes with an open SIF.
pub fn open_reply(opened: &Opened) -> v1::OpenReply {
    v1::OpenReply {
        status: v1::open_reply::Status::Sif.into(),
        manifest_digest: opened.manifest.to_string(),
        reference: opened.reference.to_string(),
        path: display_path(&opened.path),
        mounted: opened.mount.is_some(),
        no_mount: opened.no_mount.clone().unwrap_or_default(),
        image_key: opened.key.map(|key| key.to_string()).unwrap_or_default(),
    }
}

/// A failure as its status.
pub fn status(failure: Failure) -> Status {
    sctl_proto::to_status(&FailureDetail {
        kind: failure.kind,
        message: failure.message,
        causes: failure.causes,
        hint: failure.hint.unwrap_or_default(),
        retry_after_seconds: failure.retry_after_seconds.unwrap_or(0),
    })
}

/// A piece of news.
pub fn pull_event(event: PullEvent) -> v1::PullEvent {
    use v1::pull_event::{Done, Kind, Layer, Notice, Progress, Resolved};
    let kind = match event {
        PullEvent::Resolved { manifest, reference, layers, config, config_size, image_cached } => {
            let layers = layers
                .into_iter()
                .map(|layer| Layer { digest: layer.digest.to_string(), size: layer.size, cached: layer.cached })
                .collect();
            Kind::Resolved(Resolved {
                manifest_digest: manifest.to_string(),
                reference: reference.to_string(),
                layers,
                config_digest: config.to_string(),
                config_size,
                image_cached,
            })
        }
        PullEvent::Progress { stage, digest, done_bytes, total_bytes, finished } => Kind::Progress(Progress {
            stage: match stage {
                Stage::Fetch => v1::Stage::Fetch,
                Stage::Pack => v1::Stage::Pack,
                Stage::Assemble => v1::Stage::Assemble,
            }
            .into(),
            digest: digest.map(|digest| digest.to_string()).unwrap_or_default(),
            done_bytes,
            total_bytes: total_bytes.unwrap_or(0),
            finished,
        }),
        PullEvent::Notice(notice) => Kind::Notice(Notice {
            level: match notice.level {
                NoticeLevel::Warning => v1::Level::Warning,
                NoticeLevel::Info => v1::Level::Info,
                NoticeLevel::Verbose => v1::Level::Verbose,
            }
            .into(),
            text: notice.text,
        }),
        PullEvent::Done { ticket, manifest, size, fetched_bytes, reused_bytes, path, image_cached, key } => {
            Kind::Done(Done {
                ticket: ticket.0.to_vec(),
                manifest_digest: manifest.to_string(),
                size,
                fetched_bytes,
                reused_bytes,
                path: display_path(&path),
                image_cached,
                image_key: key.map(|key| key.to_string()).unwrap_or_default(),
            })
        }
    };
    v1::PullEvent { kind: Some(kind) }
}

/// A path for display: a `string` field holds UTF-8 only.
pub fn display_path(path: &std::path::Path) -> String {
    String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_field_is_named() {
        let good = v1::PullRequest { reference: "ubuntu".to_owned(), ..Default::default() };
        let job = pull_job(good.clone()).unwrap();
        assert_eq!(job.reference.to_string(), "docker.io/library/ubuntu:latest");
        assert_eq!(job.platform, Platform::host());
        let cases = [
            (v1::PullRequest { reference: "Ubuntu".to_owned(), ..good.clone() }, "reference"),
            (v1::PullRequest { platform: "vax".to_owned(), ..good.clone() }, "platform"),
            (v1::PullRequest { compression: "xz".to_owned(), ..good.clone() }, "compression"),
            (v1::PullRequest { credentials: Some(v1::Credentials { kind: None }), ..good }, "credentials"),
        ];
        for (request, field) in cases {
            let failure = pull_job(request).unwrap_err();
            assert_eq!(failure.kind, ErrorKind::InvalidInput);
            assert!(failure.message.starts_with(field), "{failure}");
        }
    }

    #[test]
    fn open_requests_are_whole_or_nothing() {
        use v1::open_request::What;
        let request = |what: Option<What>, mount: i32| open_request(v1::OpenRequest { what, mount });
        let ticket = |len: usize| request(Some(What::Ticket(vec![1; len])), 0);
        assert!(ticket(16).is_some());
        assert!(ticket(15).is_none() && ticket(17).is_none() && ticket(0).is_none());
        assert!(request(None, 0).is_none());
        let image = |reference: &str| {
            let image = v1::ImageRequest { reference: reference.to_owned(), platform: String::new() };
            request(Some(What::Image(image)), 0)
        };
        assert!(image("ubuntu").is_some());
        assert!(image("").is_none());
        let wish = |mount| request(Some(What::Ticket(vec![1; 16])), mount).map(|(_, wish)| wish);
        assert_eq!([wish(0), wish(1), wish(2)], [MountWish::None, MountWish::Shared, MountWish::Private].map(Some));
        assert!(wish(3).is_none() && wish(-1).is_none());
        let delivered = |key: &str| {
            let reference = "ubuntu".to_owned();
            let delivered = v1::DeliveredRequest { reference, platform: String::new(), image_key: key.to_owned() };
            request(Some(What::Delivered(delivered)), 1)
        };
        assert!(delivered(&"0f".repeat(32)).is_some());
        assert!(delivered("").is_none() && delivered("../../x").is_none() && delivered(&"0F".repeat(32)).is_none());
    }
}
