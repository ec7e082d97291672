//! Flight one: what a reference means now, to these credentials.

use std::{sync::Arc, time::Duration};

use sctl_common::{Digest, ErrorKind, Limits, Platform, Profile, Reference};
use tokio::time::timeout;

use super::{Board, Inner, delivered, grant_of};
use crate::{
    Caller, Failure, JobWork, PullJob,
    cache::{Grant, INSECURE_SCHEME, ImageKey},
    job::{
        process::Job,
        protocol::{Answer, Base64, LayerPlan, ManifestBytes, Report, ResolveStart, Start},
    },
    registry::{Credentials, Session, is_local_registry},
};

/// How long all questions to a registry may take. Places for them are few.
const DEADLINE: Duration = Duration::from_secs(300);

/// Requests that get the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    reference: Reference,
    platform: Platform,
    grant: Grant,
    /// Of the credentials: others may have none, or wrong ones.
    credentials: Digest,
    insecure: bool,
    /// Decides which image is looked for in the cache.
    profile_id: String,
}

/// What a reference means.
#[derive(Debug)]
pub(super) struct Resolution {
    pub(super) manifest: ManifestBytes,
    pub(super) key: ImageKey,
    pub(super) config: Digest,
    pub(super) config_size: u64,
    /// Blob and size of each layer, from the lowest up.
    pub(super) layers: Vec<(Digest, u64)>,
    /// How to make the image; none if it was in the cache.
    pub(super) plan: Option<Plan>,
}

/// How to make an image.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) config: Vec<u8>,
    pub(super) layers: Vec<LayerPlan>,
    pub(super) session: Session,
}

impl Key {
    pub(super) fn new(caller: Caller, job: &PullJob, profile_id: &str) -> Result<Self, Failure> {
        Ok(Self {
            reference: job.reference.clone(),
            platform: job.platform.clone(),
            grant: grant_of(caller, &job.credentials),
            credentials: fingerprint(&job.credentials)?,
            insecure: job.insecure,
            profile_id: profile_id.to_owned(),
        })
    }
}

/// Tells credentials apart; it never leaves this process.
fn fingerprint(credentials: &Credentials) -> Result<Digest, Failure> {
    let bytes = serde_json::to_vec(credentials)
        .map_err(|error| Failure::internal("cannot compare credentials").because(&error))?;
    Ok(Digest::of(&bytes))
}

/// Where an image comes from, as keys and sidecars name it.
///
/// Over a line without verified TLS anybody may answer. What came over one
/// never has the origin of what came from the registry that was meant.
pub(super) fn origin(reference: &Reference, insecure: bool) -> String {
    let scheme = match (is_local_registry(reference), insecure) {
        // Plain HTTP is tried unasked there.
        (true, _) => "docker-local",
        (false, true) => INSECURE_SCHEME,
        (false, false) => "docker",
    };
    format!("{scheme}://{}", reference.name())
}

/// The right to an image, its name and its lease that a caller has earned by
/// an answer to its credentials: over a line that nobody vouches for, never
/// one for everybody.
pub(super) fn image_grant(caller: Caller, job: &PullJob) -> Grant {
    if job.insecure || is_local_registry(&job.reference) {
        return Grant::Uid(caller.uid);
    }
    grant_of(caller, &job.credentials)
}

/// The name of a profile in keys and file names.
pub(super) fn profile_id(profile: &Profile) -> String {
    profile.id(&sctl_squashfs::codec_id(profile.compression))
}

/// Runs the job.
pub(super) async fn fly(
    inner: Arc<Inner>,
    account: u32,
    job: PullJob,
    profile_id: String,
    board: Arc<Board>,
) -> Result<Arc<Resolution>, Failure> {
    let _slot = inner.resolve_slots.acquire(account).await?;
    match timeout(DEADLINE, ask(&inner, job, &profile_id, &board)).await {
        Ok(result) => result,
        Err(_) => {
            let text = format!("the registry did not answer all questions within {} s", DEADLINE.as_secs());
            Err(Failure::new(ErrorKind::DeadlineExceeded, text).hint("try again, or tell the registry's owner"))
        }
    }
}

async fn ask(
    inner: &Arc<Inner>,
    job: PullJob,
    profile_id: &str,
    board: &Arc<Board>,
) -> Result<Arc<Resolution>, Failure> {
    let start = Start::Resolve(Box::new(ResolveStart {
        reference: job.reference.clone(),
        platform: job.platform.clone(),
        access: inner.access(&job.credentials, None, job.insecure),
        limits: inner.options().limits,
    }));
    let mut process = inner.launcher.start("that resolves the reference".to_owned(), &start, Vec::new()).await?;
    let _listed = inner.roster.list(process.pid(), JobWork::Resolve, &job.reference, board);
    let Report::Manifest { manifest, config, config_size, layers, platform_known } = next(&mut process, board).await?
    else {
        return Err(process.unexpected());
    };
    // The job may be anybody's by now. What it says about a registry we must
    // take from it, but not what a digest names.
    check_digest("manifest", &manifest.digest, &manifest.bytes.0)?;
    if layers.len() > inner.options().limits.max_layers as usize || !is_media_type(&manifest.media_type) {
        return Err(process.unexpected());
    }
    check_sizes(&layers, &inner.options().limits)?;
    let origin = origin(&job.reference, job.insecure);
    let key = ImageKey::new(&origin, &manifest.digest, profile_id);
    let platform = job.platform.clone();
    let known = inner
        .with_cache(move |cache| {
            let image = cache.find_image(&key)?;
            // Without an index nobody has compared the platform yet: the
            // image's own description must do.
            Ok(image.is_some_and(|image| platform_known || image.meta.platform == platform))
        })
        .await?;
    let source = delivered::Source { origin, manifest: manifest.digest, config };
    let delivered = inner.delivered.find(&source).filter(|_| !known);
    process.send(&Answer { known, config: delivered.map(|bytes| Base64(bytes.to_vec())) }).await?;
    let plan = match next(&mut process, board).await? {
        Report::Known if known => None,
        Report::Resolved { config: bytes, layers: plans, session } if !known => {
            check_digest("config", &config, &bytes.0)?;
            let same = plans.iter().map(|plan| (plan.source.digest, plan.source.size)).eq(layers.iter().copied());
            if !same {
                return Err(process.unexpected());
            }
            inner.delivered.remember(source, &bytes.0);
            Some(Plan { config: bytes.0, layers: plans, session })
        }
        _ => return Err(process.unexpected()),
    };
    process.finish().await?;
    Ok(Arc::new(Resolution { manifest, key, config, config_size, layers, plan }))
}

/// Says whether a text is short and plain enough to be kept as a media type.
fn is_media_type(text: &str) -> bool {
    text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Refuses what cannot fit before anything is reserved or fetched for it.
fn check_sizes(layers: &[(Digest, u64)], limits: &Limits) -> Result<(), Failure> {
    let refuse = |text| Err(Failure::new(ErrorKind::LimitExceeded, text));
    let mut sum = 0u64;
    for ((_, size), at) in layers.iter().zip(1..) {
        if *size > limits.max_layer_bytes {
            let (of, limit) = (layers.len(), limits.max_layer_bytes);
            return refuse(format!("layer {at} of {of} has {size} bytes, more than {limit}"));
        }
        sum = sum.saturating_add(*size);
    }
    if sum > limits.max_image_bytes {
        return refuse(format!("the layers have {sum} bytes, more than {}", limits.max_image_bytes));
    }
    Ok(())
}

fn check_digest(what: &str, expected: &Digest, bytes: &[u8]) -> Result<(), Failure> {
    let found = Digest::of(bytes);
    if found == *expected {
        return Ok(());
    }
    let mut failure = Failure::new(ErrorKind::Corrupt, format!("the {what} does not match its digest"));
    failure.causes.push(format!("expected {expected}, got {found}"));
    Err(failure)
}

/// The next word of a job that is no notice.
async fn next(process: &mut Job, board: &Board) -> Result<Report, Failure> {
    loop {
        match process.next().await? {
            Report::Notice(notice) => board.notice(notice),
            report => return Ok(report),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Secret;

    fn job(reference: &str, credentials: Credentials, insecure: bool) -> PullJob {
        PullJob {
            reference: Reference::parse(reference).unwrap(),
            platform: Platform::host(),
            credentials,
            insecure,
            compression: None,
            disable_cache: false,
        }
    }

    #[test]
    fn an_answer_that_nobody_vouches_for_is_for_its_caller_alone() {
        let caller = Caller::user(7);
        let password = Credentials::Basic { username: "u".to_owned(), password: Secret::new("p".to_owned()) };
        let own = Grant::Uid(7);
        for (reference, insecure, origin_then, grant) in [
            ("registry.example/a/b:1", false, "docker://registry.example/a/b", Grant::Public),
            ("registry.example/a/b:1", true, "docker-insecure://registry.example/a/b", own),
            ("localhost:5000/b:1", false, "docker-local://localhost:5000/b", own),
            ("10.0.0.1/b:1", true, "docker-local://10.0.0.1/b", own),
        ] {
            let job_then = job(reference, Credentials::Anonymous, insecure);
            assert_eq!(origin(&job_then.reference, insecure), origin_then);
            assert_eq!(image_grant(caller, &job_then), grant, "{reference} {insecure}");
            assert_eq!(image_grant(caller, &job(reference, password.clone(), insecure)), own);
        }
    }

    #[test]
    fn media_types_are_short_and_plain() {
        assert!(is_media_type("application/vnd.oci.image.manifest.v1+json"));
        assert!(!is_media_type(&"x".repeat(129)) && !is_media_type("a/b\n") && !is_media_type("a/\u{e9}"));
    }

    #[test]
    fn layers_that_claim_too_much_are_refused_with_figures() {
        let limits = Limits { max_layer_bytes: 100, max_image_bytes: 250, ..Limits::default() };
        let check = |sizes: &[u64]| {
            let layers: Vec<_> = sizes.iter().map(|size| (Digest::of(b""), *size)).collect();
            check_sizes(&layers, &limits).map_err(|failure| (failure.kind, failure.message))
        };
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[100, 100, 50]), Ok(()));
        let refused = |text: &str| Err((ErrorKind::LimitExceeded, text.to_owned()));
        assert_eq!(check(&[100, 1 << 62]), refused("layer 2 of 2 has 4611686018427387904 bytes, more than 100"));
        assert_eq!(check(&[100, 100, 51]), refused("the layers have 251 bytes, more than 250"));
        let limits = Limits { max_layer_bytes: u64::MAX, max_image_bytes: u64::MAX - 1, ..limits };
        assert!(check_sizes(&[(Digest::of(b""), u64::MAX), (Digest::of(b""), 2)], &limits).is_err(), "no overflow");
    }
}
