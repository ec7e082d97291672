//! Flight two: one layer's pack.

use std::{fs::File, sync::Arc};

use sctl_common::{DiffId, Profile, Reference};
use tracing::info;

use super::{Board, Inner, rate::Rate, resolve::origin};
use crate::{
    Failure, JobWork, Stage,
    cache::{Grant, PackMeta, StageKind},
    job::protocol::{LayerPlan, LayerStart, Report, Start},
    registry::{Credentials, Session},
};

/// Requests that get the same pack by the same right from the same place.
///
/// The place is part of it: otherwise a registry that claims somebody else's
/// layer and never delivers it would hold up everybody who wants it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    diff_id: DiffId,
    profile_id: String,
    grant: Grant,
    origin: String,
    insecure: bool,
    /// Of a pull that leaves nothing in the cache and shares with nobody.
    private: Option<u64>,
}

/// A pack that can be read.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) file: File,
    /// Bytes of the uncompressed tar.
    pub(super) tar_bytes: u64,
    /// Blob bytes that were fetched for it.
    pub(super) fetched_bytes: u64,
}

/// What is needed to make a pack.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) reference: Reference,
    pub(super) plan: LayerPlan,
    /// From 1, and of how many.
    pub(super) position: (usize, usize),
    pub(super) credentials: Credentials,
    pub(super) session: Session,
    pub(super) insecure: bool,
    pub(super) grant: Grant,
    /// Whose grants count for what is in the cache.
    pub(super) uid: u32,
    pub(super) account: u32,
    pub(super) profile: Profile,
    pub(super) profile_id: String,
    pub(super) private: Option<u64>,
}

impl Spec {
    fn key(&self) -> Key {
        Key {
            diff_id: self.plan.diff_id,
            profile_id: self.profile_id.clone(),
            grant: self.grant,
            origin: origin(&self.reference, self.insecure),
            insecure: self.insecure,
            private: self.private,
        }
    }
}

/// Gets a pack from the cache, or boards the flight that makes it. `board`
/// shows that flight from then on.
pub(super) async fn get(inner: &Arc<Inner>, spec: Spec, board: &Board) -> Result<Arc<Done>, Failure> {
    if let Some(done) = find(inner, &spec).await? {
        return Ok(Arc::new(done));
    }
    let (at, of) = spec.position;
    let mut passenger = inner.layers.join(spec.key(), Board::new(spec.uid), |board| {
        let (inner, spec) = (Arc::clone(inner), spec.clone());
        async move { fly(inner, spec, board).await }
    });
    board.include(Arc::clone(passenger.board()));
    passenger
        .arrive()
        .await
        .map_err(|failure| Failure::internal(format!("cannot fetch and pack layer {at} of {of}")).caused_by(failure))
}

/// A pack in the cache that the caller may use.
pub(super) async fn find(inner: &Arc<Inner>, spec: &Spec) -> Result<Option<Done>, Failure> {
    let (diff_id, profile_id, uid) = (spec.plan.diff_id, spec.profile_id.clone(), spec.uid);
    let pack = inner.with_cache(move |cache| cache.find_pack(&diff_id, &profile_id, uid)).await?;
    Ok(pack.map(|pack| Done { file: pack.file, tar_bytes: pack.meta.tar_bytes, fetched_bytes: 0 }))
}

async fn fly(inner: Arc<Inner>, spec: Spec, board: Arc<Board>) -> Result<Arc<Done>, Failure> {
    let _slot = inner.layer_slots.acquire(spec.account).await?;
    // While this waited, or since it was looked for, another flight may have
    // made it.
    if let Some(done) = find(&inner, &spec).await? {
        return Ok(Arc::new(done));
    }
    let keep_blob = inner.options().keep_blobs && spec.private.is_none();
    let (pack, blob) = inner
        .with_cache(move |cache| {
            let blob = if keep_blob { Some(cache.stage(StageKind::Blob)?) } else { None };
            Ok((cache.stage(StageKind::Pack)?, blob))
        })
        .await?;
    let mut fds = vec![pack.writer()?];
    if let Some(blob) = &blob {
        fds.push(blob.writer()?);
    }
    let digest = spec.plan.source.digest;
    let start = Start::Layer(Box::new(LayerStart {
        reference: spec.reference.clone(),
        access: inner.access(&spec.credentials, Some(spec.session), spec.insecure),
        source: spec.plan.source.clone(),
        diff_id: spec.plan.diff_id,
        profile: spec.profile,
        limits: inner.options().limits,
        threads: inner.options().job_threads(),
        keep_blob,
    }));
    let (at, of) = spec.position;
    let mut process = inner.launcher.start(format!("that packs layer {at} of {of}"), &start, fds).await?;
    let work = JobWork::Layer { number: at, count: of };
    let listed = inner.roster.list(process.pid(), work, &spec.reference, &board);
    let rate = Rate::new(inner.options().min_bytes_per_second, spec.plan.source.size);
    let tar_bytes = loop {
        let report = tokio::select! {
            report = process.next() => report?,
            failure = rate.too_low() => return Err(failure),
        };
        match report {
            Report::Notice(notice) => board.notice(notice),
            Report::Progress { stage: Stage::Fetch, done_bytes, total_bytes } => {
                rate.update(done_bytes);
                board.progress(Stage::Fetch, Some(digest), done_bytes, total_bytes, false);
            }
            Report::Progress { stage: Stage::Pack, done_bytes, total_bytes } => {
                board.progress(Stage::Pack, Some(digest), done_bytes, total_bytes, false);
            }
            Report::Packed { tar_bytes, .. } => break tar_bytes,
            _ => return Err(process.unexpected()),
        }
    };
    process.finish().await?;
    drop(listed);
    let size = spec.plan.source.size;
    board.progress(Stage::Fetch, Some(digest), size, Some(size), true);
    board.progress(Stage::Pack, Some(digest), tar_bytes, Some(tar_bytes), true);

    let (grant, private) = (spec.grant, spec.private.is_some());
    let meta = PackMeta {
        diff_id: spec.plan.diff_id,
        profile_id: spec.profile_id,
        blobs: vec![digest],
        tar_bytes,
        origins: vec![origin(&spec.reference, spec.insecure)],
    };
    let file = inner
        .with_cache(move |cache| {
            let sealed = pack.seal()?;
            if private {
                return Ok(sealed.into_file());
            }
            if let Some(blob) = blob {
                cache.publish_blob_file(blob.seal()?, &digest)?;
            }
            Ok(cache.publish_pack(sealed, &meta, grant)?.file)
        })
        .await?;
    info!(%digest, size_bytes = size, tar_bytes, "layer packed");
    Ok(Arc::new(Done { file, tar_bytes, fetched_bytes: size }))
}
