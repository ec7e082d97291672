//! Flight three: all layers of an image, and the SIF made of them.

use std::{
    fs::File,
    sync::{Arc, Mutex},
    time::Instant,
};

use futures_util::future::try_join_all;
use sctl_common::{Digest, ErrorKind, Profile};
use tracing::info;

use super::{
    Board, Inner, layer,
    resolve::{Plan, Resolution, origin},
};
use crate::{
    Failure, JobWork, PullJob, Stage,
    cache::{Cache, EntryId, Grant, ImageKey, ImageLayer, ImageMeta, StageKind},
    job::protocol::{AssembleStart, Base64, Report, Start},
};

/// Requests that get the same SIF. Who made it does not matter: each of them
/// has earned this very manifest at this origin.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) image: ImageKey,
    /// Of a pull that leaves nothing in the cache and shares with nobody.
    pub(super) private: Option<u64>,
    /// Of a user whom somebody else's failure must not concern.
    pub(super) alone: Option<u32>,
}

/// A finished image.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) size: u64,
    pub(super) fetched_bytes: u64,
    pub(super) reused_bytes: u64,
    /// The file itself, if it is not in the cache.
    pub(super) private: Mutex<Option<File>>,
}

/// What is needed to make an image.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) job: PullJob,
    pub(super) resolution: Arc<Resolution>,
    pub(super) plan: Plan,
    pub(super) profile: Profile,
    pub(super) profile_id: String,
    /// To the layers.
    pub(super) grant: Grant,
    /// To the image.
    pub(super) image_grant: Grant,
    pub(super) uid: u32,
    /// Whom the places for jobs are charged to.
    pub(super) account: u32,
    pub(super) private: Option<u64>,
}

impl Spec {
    pub(super) fn layers(&self) -> impl Iterator<Item = layer::Spec> {
        let count = self.plan.layers.len();
        self.plan.layers.iter().enumerate().map(move |(at, plan)| layer::Spec {
            reference: self.job.reference.clone(),
            plan: plan.clone(),
            position: (at + 1, count),
            credentials: self.job.credentials.clone(),
            session: self.plan.session.clone(),
            insecure: self.job.insecure,
            grant: self.grant,
            uid: self.uid,
            account: self.account,
            profile: self.profile,
            profile_id: self.profile_id.clone(),
            private: self.private,
        })
    }

    fn entries(&self) -> Vec<EntryId> {
        let packs = self
            .plan
            .layers
            .iter()
            .map(|layer| EntryId::Pack { diff_id: layer.diff_id, profile_id: self.profile_id.clone() });
        let blobs = [self.resolution.manifest.digest, self.resolution.config].map(EntryId::Blob);
        packs.chain(blobs).chain([EntryId::Image(self.resolution.key)]).collect()
    }
}

pub(super) async fn fly(inner: Arc<Inner>, spec: Spec, board: Arc<Board>) -> Result<Arc<Made>, Failure> {
    let started = Instant::now();
    let key = spec.resolution.key;
    let _hold = inner.cache.hold(spec.entries());

    let mut missing_bytes = 0u64;
    for layer in spec.layers() {
        if layer::find(&inner, &layer).await?.is_none() {
            missing_bytes = missing_bytes.saturating_add(layer.plan.source.size);
        }
    }
    let all_bytes = spec.plan.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.source.size));
    // A pack is about as large as its blob, and the SIF as all packs.
    let copies = if inner.options().keep_blobs && spec.private.is_none() { 2 } else { 1 };
    let need_bytes = missing_bytes.saturating_mul(copies).saturating_add(all_bytes);
    let mounts = Arc::clone(&inner);
    let check = move |cache: &Cache| cache.check_space(need_bytes, &|id| mounts.in_use(id));
    let mut reservation = inner.with_cache(check).await?;

    let layers = try_join_all(spec.layers().map(|layer| layer::get(&inner, layer, &board))).await?;
    reservation.set_remaining(all_bytes);
    let tar_bytes = layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.tar_bytes));
    let limit = inner.options().limits.max_image_bytes;
    if tar_bytes > limit {
        return Err(Failure::new(
            ErrorKind::LimitExceeded,
            format!("the layers have {tar_bytes} bytes uncompressed, more than {limit}"),
        ));
    }
    let fetched_bytes = layers.iter().map(|layer| layer.fetched_bytes).sum();
    let reused_bytes = all_bytes.saturating_sub(fetched_bytes);

    let (size, file) = assemble(&inner, &spec, &layers, &board).await?;
    inner.cache.count(fetched_bytes, reused_bytes);
    let elapsed_ms = started.elapsed().as_millis() as u64;
    info!(%key, size_bytes = size, fetched_bytes, reused_bytes, elapsed_ms, "image made");
    Ok(Arc::new(Made { size, fetched_bytes, reused_bytes, private: Mutex::new(file) }))
}

/// Runs the job and publishes what it made; a private image comes back as a
/// file.
async fn assemble(
    inner: &Arc<Inner>,
    spec: &Spec,
    layers: &[Arc<layer::Done>],
    board: &Arc<Board>,
) -> Result<(u64, Option<File>), Failure> {
    let failed = |failure| Failure::internal("cannot assemble the image").caused_by(failure);
    let _slot = inner.assemble_slots.acquire(spec.account).await?;
    let sif = inner.with_cache(|cache| cache.stage(StageKind::Image)).await?;
    let mut fds = vec![sif.writer()?];
    for layer in layers {
        let fd = layer.file.try_clone().map_err(|error| Failure::io("cannot duplicate a descriptor", &error))?;
        fds.push(fd.into());
    }
    let manifest = &spec.resolution.manifest;
    let start = Start::Assemble(Box::new(AssembleStart {
        origin: spec.job.reference.name(),
        key: spec.resolution.key,
        manifest: manifest.digest,
        config: Base64(spec.plan.config.clone()),
        profile: spec.profile,
        limits: inner.options().limits,
        threads: inner.options().job_threads(),
    }));
    let mut process = inner.launcher.start("that assembles the image".to_owned(), &start, fds).await?;
    let listed = inner.roster.list(process.pid(), JobWork::Assemble, &spec.job.reference, board);
    let (size, partition, special_files, ids) = loop {
        match process.next().await.map_err(failed)? {
            Report::Notice(notice) => board.notice(notice),
            Report::Progress { stage: Stage::Assemble, done_bytes, total_bytes } => {
                board.progress(Stage::Assemble, None, done_bytes, total_bytes, false);
            }
            Report::Assembled { size, partition, special_files, ids } => break (size, partition, special_files, ids),
            _ => return Err(process.unexpected()),
        }
    };
    process.finish().await.map_err(failed)?;
    drop(listed);

    let meta = ImageMeta {
        key: spec.resolution.key,
        origin: origin(&spec.job.reference, spec.job.insecure),
        references: vec![spec.job.reference.to_string()],
        manifest: manifest.digest,
        manifest_media_type: manifest.media_type.clone(),
        manifest_size_bytes: manifest.bytes.0.len() as u64,
        config: spec.resolution.config,
        platform: spec.job.platform.clone(),
        profile_id: spec.profile_id.clone(),
        layers: spec
            .plan
            .layers
            .iter()
            .map(|layer| ImageLayer {
                digest: layer.source.digest,
                diff_id: layer.diff_id,
                size_bytes: layer.source.size,
            })
            .collect(),
        partition: Some(partition),
        special_files,
        ids,
    };
    let (manifest, config) = (manifest.bytes.0.clone(), spec.plan.config.clone());
    let (grant, private) = (spec.image_grant, spec.private.is_some());
    let file = inner
        .with_cache(move |cache| {
            let sealed = sif.seal()?;
            if private {
                return Ok(Some(sealed.into_file()));
            }
            cache.publish_image(sealed, &meta, grant, &[&manifest, &config])?;
            Ok(None)
        })
        .await?;
    board.progress(Stage::Assemble, None, size, Some(size), true);
    Ok((size, file))
}

/// Digests and sizes for a caller, with what is in the cache for it.
pub(super) async fn cached_flags(inner: &Arc<Inner>, spec: &Spec) -> Result<Vec<(Digest, u64, bool)>, Failure> {
    let mut flags = Vec::with_capacity(spec.plan.layers.len());
    for layer in spec.layers() {
        let cached = layer::find(inner, &layer).await?.is_some();
        flags.push((layer.plan.source.digest, layer.plan.source.size, cached));
    }
    Ok(flags)
}
