//! One caller's pull, from its request to its ticket.

use std::{
    fs::File,
    path::PathBuf,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{debug, info};

use super::{
    Board, Informer, Inner, grant_of, image,
    resolve::{self, Resolution},
    tickets,
};
use crate::{
    Caller, Failure, Opened, PullEvent, PullJob, ResolvedLayer, audit,
    cache::{Grant, ImageKey},
};

/// An image that was found can be cleaned away before it is opened; then it is
/// made again, but not for ever.
const ATTEMPTS: usize = 4;

/// Does the whole pull; the result is its last event.
pub(super) async fn run(
    inner: &Arc<Inner>,
    caller: Caller,
    job: &PullJob,
    informer: &mut Informer,
) -> Result<PullEvent, Failure> {
    let profile = inner.profile(job);
    let profile_id = resolve::profile_id(&profile);
    // The bytes of a layer are proven by its diff_id, whoever sends them.
    let layer_grant = grant_of(caller, &job.credentials);
    let grant = resolve::image_grant(caller, job);
    for _ in 0..ATTEMPTS {
        let resolution = resolve(inner, caller, job, &profile_id, informer).await?;
        if let Some((file, size)) = find(inner, &resolution).await? {
            informer.tell(resolved(job, &resolution, resolution.layers.iter().map(|&(d, s)| (d, s, true)), true)).await;
            let reused_bytes = resolution.layers.iter().map(|(_, size)| size).sum();
            inner.cache.count(0, reused_bytes);
            return done(
                inner,
                caller,
                job,
                grant,
                &resolution,
                Outcome { file, size, fetched_bytes: 0, reused_bytes, image_cached: true, private: false },
            )
            .await;
        }
        let Some(plan) = resolution.plan.clone() else {
            debug!("the image went away since it was found");
            continue;
        };
        let spec = image::Spec {
            job: job.clone(),
            resolution: Arc::clone(&resolution),
            plan,
            profile,
            profile_id: profile_id.clone(),
            grant: layer_grant,
            image_grant: grant,
            uid: caller.uid,
            account: caller.account,
            private: job.disable_cache.then(private_id),
        };
        let flags = image::cached_flags(inner, &spec).await?;
        informer.tell(resolved(job, &resolution, flags.into_iter(), false)).await;

        let (made, started) = make(inner, spec, informer).await?;
        // Each caller gets an open file of its own: those who share one would
        // share its offset.
        let private = made.private.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (file, size, is_private) = match private {
            Some(file) => (file, made.size, true),
            None => match find(inner, &resolution).await? {
                Some((file, size)) => (file, size, false),
                None => continue,
            },
        };
        // Bytes that were fetched once are counted for one.
        let all_bytes = made.fetched_bytes + made.reused_bytes;
        let fetched_bytes = if started { made.fetched_bytes } else { 0 };
        let outcome = Outcome {
            file,
            size,
            fetched_bytes,
            reused_bytes: all_bytes - fetched_bytes,
            image_cached: false,
            private: is_private,
        };
        return done(inner, caller, job, grant, &resolution, outcome).await;
    }
    Err(Failure::new(sctl_common::ErrorKind::Unavailable, "the image was removed from the cache again and again")
        .hint("somebody seems to clean the cache all the time"))
}

/// Boards the flight that makes the image; answers also whether this started
/// it. What fails may fail of somebody else's credentials: then the caller's
/// own are tried, once.
async fn make(
    inner: &Arc<Inner>,
    spec: image::Spec,
    informer: &mut Informer,
) -> Result<(Arc<image::Made>, bool), Failure> {
    let mut alone = None;
    loop {
        let key = image::Key { image: spec.resolution.key, private: spec.private, alone };
        let mut passenger = inner.images.join(key, Board::new(spec.uid), |board| {
            let (inner, spec) = (Arc::clone(inner), spec.clone());
            async move { image::fly(inner, spec, board).await }
        });
        let board = Arc::clone(passenger.board());
        match informer.follow(&board, passenger.arrive()).await {
            Ok(made) => return Ok((made, passenger.started())),
            Err(failure) if board.uid() != spec.uid && alone.is_none() => {
                debug!(%failure, "somebody else's work failed: doing it again");
                alone = Some(spec.uid);
            }
            Err(failure) => return Err(failure),
        }
    }
}

async fn resolve(
    inner: &Arc<Inner>,
    caller: Caller,
    job: &PullJob,
    profile_id: &str,
    informer: &mut Informer,
) -> Result<Arc<Resolution>, Failure> {
    let key = resolve::Key::new(caller, job, profile_id)?;
    let mut passenger = inner.resolves.join(key, Board::new(caller.uid), |board| {
        resolve::fly(Arc::clone(inner), caller.account, job.clone(), profile_id.to_owned(), board)
    });
    let board = Arc::clone(passenger.board());
    informer.follow(&board, passenger.arrive()).await
}

async fn find(inner: &Arc<Inner>, resolution: &Resolution) -> Result<Option<(File, u64)>, Failure> {
    let key = resolution.key;
    let image = inner.with_cache(move |cache| cache.find_image(&key)).await?;
    Ok(image.map(|image| (image.file, image.size_bytes)))
}

fn private_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn resolved(
    job: &PullJob,
    resolution: &Resolution,
    layers: impl Iterator<Item = (sctl_common::Digest, u64, bool)>,
    image_cached: bool,
) -> PullEvent {
    PullEvent::Resolved {
        manifest: resolution.manifest.digest,
        reference: job.reference.clone(),
        layers: layers.map(|(digest, size, cached)| ResolvedLayer { digest, size, cached }).collect(),
        config: resolution.config,
        config_size: resolution.config_size,
        image_cached,
    }
}

struct Outcome {
    file: File,
    size: u64,
    fetched_bytes: u64,
    reused_bytes: u64,
    image_cached: bool,
    private: bool,
}

/// Notes what the caller has earned, and makes the ticket.
async fn done(
    inner: &Arc<Inner>,
    caller: Caller,
    job: &PullJob,
    grant: Grant,
    resolution: &Resolution,
    outcome: Outcome,
) -> Result<PullEvent, Failure> {
    let key = resolution.key;
    let manifest = resolution.manifest.digest;
    if !job.disable_cache {
        earn(inner, job, grant, key, manifest).await?;
    }
    let path = if outcome.private { PathBuf::new() } else { inner.cache.image_path(&key) };
    let mut opened = Opened::new(outcome.file, manifest, job.reference.clone(), path.clone());
    opened.key = (!outcome.private).then_some(key);
    let kept = opened.key;
    let ticket = inner.tickets.issue(caller, opened)?;
    let expiring = Arc::downgrade(inner);
    tokio::spawn(async move {
        tokio::time::sleep(tickets::LIFETIME).await;
        if let Some(inner) = expiring.upgrade() {
            inner.tickets.expire();
        }
    });
    let Outcome { size, fetched_bytes, reused_bytes, image_cached, .. } = outcome;
    let name = job.reference.to_string();
    let granted = audit::Image { reference: Some(&name), manifest: Some(&manifest), key: kept.as_ref() };
    audit::grant(caller.uid, granted, audit::Basis::Registry);
    info!(%manifest, ?grant, fetched_bytes, reused_bytes, image_cached, "pulled");
    Ok(PullEvent::Done { ticket, manifest, size, fetched_bytes, reused_bytes, path, image_cached, key: kept })
}

async fn earn(
    inner: &Arc<Inner>,
    job: &PullJob,
    grant: Grant,
    key: ImageKey,
    manifest: sctl_common::Digest,
) -> Result<(), Failure> {
    let reference = job.reference.to_string();
    let name = reference.clone();
    inner.with_cache(move |cache| cache.add_image_grant(&key, grant, Some(&name))).await?;
    inner.cache.put_lease(grant, &reference, &job.platform, key, manifest, inner.options().lease);
    Ok(())
}
