//! Manifests, indexes and configs.

use std::sync::LazyLock;

use reqwest::{
    Method, Response,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use sctl_common::{Digest, Platform, Reference};
use sctl_oci::{Descriptor, Document, MAX_INDEX_DEPTH, Manifest, SelectError, Selection, media_type};

use super::{
    Client, RegistryError,
    api::Call,
    blob::BlobSource,
    body::{clean_text, read_small},
    error::Subject,
    retry::Retrier,
};

/// Indexes and manifests that one resolution may fetch, however they nest.
const MAX_FETCHES: u32 = 16;

static ACCEPT_MANIFESTS: LazyLock<HeaderValue> =
    LazyLock::new(|| HeaderValue::try_from(media_type::ACCEPT.join(", ")).expect("media types are plain ASCII"));

/// A manifest or index exactly as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawManifest {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The reply's `Content-Type`, perhaps with parameters.
    pub media_type: Option<String>,
    /// Digest of the bytes, computed here.
    pub digest: Digest,
}

/// What a HEAD tells about a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    /// Digest, as the registry claims it: a hint, not a proof.
    pub digest: Digest,
    /// Media type, if told.
    pub media_type: Option<String>,
}

/// A reference followed to the manifest of one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The outermost index, if the reference leads through one.
    pub index: Option<RawManifest>,
    /// The platform's manifest.
    pub raw: RawManifest,
    /// The same, parsed; not yet checked to be an image.
    pub manifest: Manifest,
}

impl Resolved {
    /// Whether an index vouched for the platform. If not, the config has to
    /// be asked ([`sctl_oci::Config::check_platform`]).
    pub const fn is_platform_known(&self) -> bool {
        self.index.is_some()
    }
}

impl Client {
    /// Fetches what `reference`'s tag or digest names: a manifest or an index.
    ///
    /// # Errors
    /// Any [`RegistryError`]; [`RegistryError::WrongDigest`] if the reference
    /// holds a digest and the bytes have another.
    pub async fn resolve_manifest(&self, reference: &Reference) -> Result<RawManifest, RegistryError> {
        self.fetch_manifest(&reference.tag_or_digest(), reference.digest()).await
    }

    /// Asks what a tag or digest is now, without the body; registries that
    /// count pulls do not count this.
    ///
    /// `Ok(None)`: the registry answers, but does not tell. Success also shows
    /// that these credentials give access.
    ///
    /// # Errors
    /// Any [`RegistryError`].
    pub async fn head_manifest(&self, reference: &Reference) -> Result<Option<ManifestHead>, RegistryError> {
        let id = reference.tag_or_digest();
        let subject = self.0.manifest_subject(&id);
        let call = manifest_call(Method::HEAD, &id);
        let response = match self.0.call(&call, &subject).await {
            Ok(response) => response,
            // A registry that knows no HEAD still knows GET.
            Err(RegistryError::Status { status: 405 | 501, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let digest = text("docker-content-digest").and_then(|digest| Digest::parse(digest).ok());
        let media_type = text(CONTENT_TYPE.as_str()).map(|text| clean_text(text, 256));
        Ok(digest.map(|digest| ManifestHead { digest, media_type }))
    }

    /// Follows `reference` through indexes to the manifest for `platform`.
    ///
    /// # Errors
    /// Any [`RegistryError`]; [`RegistryError::Platform`] if there is none.
    pub async fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Resolved, RegistryError> {
        let first = self.resolve_manifest(reference).await?;
        self.resolve_from(first, platform).await
    }

    /// Follows `first`, which was fetched before, to the manifest for
    /// `platform`.
    ///
    /// # Errors
    /// Any [`RegistryError`]; [`RegistryError::Platform`] if there is none.
    pub async fn resolve_from(&self, first: RawManifest, platform: &Platform) -> Result<Resolved, RegistryError> {
        let document = self.parse(&first)?;
        let index = match document {
            Document::Manifest(manifest) => return Ok(Resolved { index: None, raw: first, manifest: *manifest }),
            Document::Index(index) => index,
        };
        // Depth first, in the order of preference; `pending` is a stack.
        let mut pending: Vec<(Descriptor, u32)> = Vec::new();
        let mut no_match: Option<SelectError> = None;
        let mut fetches = 0;
        let mut current = Some((index, 1));
        loop {
            if let Some((index, depth)) = current.take() {
                match index.select(platform) {
                    Ok(Selection::Manifest(entry)) => pending.push((entry.clone(), depth)),
                    Ok(Selection::Indexes(entries)) => {
                        pending.extend(entries.into_iter().rev().map(|entry| (entry.clone(), depth)));
                    }
                    Err(error) => no_match = no_match.or(Some(error)),
                }
            }
            let Some((entry, depth)) = pending.pop() else {
                return Err(no_match
                    .unwrap_or_else(|| SelectError::NoMatch {
                        architecture: platform.architecture().to_owned(),
                        variant: platform.variant().unwrap_or_default().to_owned(),
                        os: platform.os().to_owned(),
                        available: Vec::new(),
                    })
                    .into());
            };
            fetches += 1;
            let subject = self.0.manifest_subject(&first.digest.to_string());
            if depth > MAX_INDEX_DEPTH || fetches > MAX_FETCHES {
                return Err(RegistryError::NestedIndexes { subject, limit: MAX_INDEX_DEPTH });
            }
            let raw = self.fetch_entry(&entry).await?;
            match self.parse(&raw)? {
                Document::Manifest(manifest) => {
                    return Ok(Resolved { index: Some(first), raw, manifest: *manifest });
                }
                Document::Index(index) => current = Some((index, depth + 1)),
            }
        }
    }

    /// Fetches a small blob, such as a config, into memory.
    ///
    /// # Errors
    /// Any [`RegistryError`]; [`RegistryError::TooLarge`] before anything is
    /// fetched if the descriptor's size passes `limit_bytes`.
    pub async fn fetch_small_blob(&self, descriptor: &Descriptor, limit_bytes: u64) -> Result<Vec<u8>, RegistryError> {
        let subject = self.0.blob_subject(descriptor.digest);
        let too_large = || RegistryError::TooLarge { subject: subject.clone(), limit_bytes };
        if descriptor.size > limit_bytes {
            return Err(too_large());
        }
        if let Some(data) = &descriptor.data {
            // Checked against size and digest when the manifest was parsed.
            return Ok(data.clone());
        }
        let size = usize::try_from(descriptor.size).map_err(|_| too_large())?;
        let mut bytes = Vec::with_capacity(size.min(1 << 20));
        let mut stream = self.fetch_blob(BlobSource::from(descriptor));
        while let Some(chunk) = stream.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn parse(&self, raw: &RawManifest) -> Result<Document, RegistryError> {
        Document::parse(&raw.bytes, raw.media_type.as_deref()).map_err(|source| RegistryError::Content {
            subject: self.0.manifest_subject(&raw.digest.to_string()),
            source,
        })
    }

    async fn fetch_entry(&self, entry: &Descriptor) -> Result<RawManifest, RegistryError> {
        let id = entry.digest.to_string();
        let raw = match &entry.data {
            Some(data) => RawManifest { bytes: data.clone(), media_type: None, digest: entry.digest },
            None => self.fetch_manifest(&id, Some(&entry.digest)).await?,
        };
        let found = raw.bytes.len() as u64;
        if found != entry.size {
            let subject = self.0.manifest_subject(&id);
            return Err(RegistryError::WrongSize { subject, expected: entry.size, found });
        }
        Ok(raw)
    }

    async fn fetch_manifest(&self, id: &str, expected: Option<&Digest>) -> Result<RawManifest, RegistryError> {
        let subject = self.0.manifest_subject(id);
        let call = manifest_call(Method::GET, id);
        let mut retrier = Retrier::new(self.0.retry);
        loop {
            // Body and head are one try: a manifest that breaks off is fetched
            // again from its start.
            let attempt = async {
                let response = self.0.call_once(&call, &subject).await?;
                read_manifest(response, &subject, self.0.max_manifest_bytes, self.0.timeouts().stall).await
            };
            match attempt.await {
                Ok(raw) => {
                    return match expected {
                        Some(&expected) if expected != raw.digest => {
                            Err(RegistryError::WrongDigest { subject, expected, found: raw.digest })
                        }
                        _ => Ok(raw),
                    };
                }
                Err(error) => self.0.wait_before_retry(error, &mut retrier, &subject).await?,
            }
        }
    }
}

fn manifest_call(method: Method, id: &str) -> Call<'static> {
    Call { method, path: format!("manifests/{id}"), accept: Some(&ACCEPT_MANIFESTS), from_byte: 0 }
}

async fn read_manifest(
    response: Response,
    subject: &Subject,
    limit_bytes: u64,
    stall: std::time::Duration,
) -> Result<RawManifest, RegistryError> {
    let media_type = content_type(response.headers());
    let bytes = read_small(response, subject, limit_bytes, stall).await?;
    if bytes.is_empty() {
        return Err(RegistryError::BadReply { subject: subject.clone(), reason: "the reply has no body" });
    }
    let digest = Digest::of(&bytes);
    Ok(RawManifest { bytes, media_type, digest })
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    headers.get(CONTENT_TYPE)?.to_str().ok().map(|text| clean_text(text, 256))
}
