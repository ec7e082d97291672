//! What a start does with what the last one left.

use std::collections::{BTreeMap, HashSet};

use super::{
    CacheError, EntryId, ImageMeta, Inner, PackMeta,
    dirs::names,
    error::During,
    model::{Meta, Record, is_stem},
};

impl Inner {
    /// Looks at every entry once: removes halves, verifies what another boot
    /// may have lost, and restores the rows that the database had or lost.
    pub(super) fn recover(&self, last_used: &BTreeMap<String, i64>) -> Result<(), CacheError> {
        self.recover_kind::<PackMeta>(last_used)?;
        let images = self.recover_kind::<ImageMeta>(last_used)?;
        images.iter().for_each(|record| self.rights.learn(record));
        for blob in self.scan_blobs()? {
            let id = EntryId::Blob(blob.digest);
            let known = last_used.get(&id.to_string()).copied().unwrap_or(0);
            self.state.restore(id, known.max(blob.changed));
        }
        self.rebuild_index(&images)
    }

    fn recover_kind<M: Meta>(&self, last_used: &BTreeMap<String, i64>) -> Result<Vec<Record<M>>, CacheError> {
        let mut records = Vec::new();
        let dir = self.dirs.of(M::KIND);
        let stems = self.stems(M::KIND)?;
        for stem in &stems {
            let loaded = {
                let publishing = self.publishing();
                self.load_locked::<M>(stem, &publishing)?
            };
            let Some((record, _)) = loaded else { continue };
            if !record.durable && record.host == self.id.host {
                // The sync that the last daemon of this boot did not get to.
                self.worker.unsynced(M::KIND, stem.clone());
            }
            let id = record.meta.id();
            let known = last_used.get(&id.to_string()).copied().unwrap_or(0);
            self.state.restore(id, known.max(record.dated));
            records.push(*record);
        }
        // A file without description: its removal was cut short elsewhere, or
        // its sidecar has been lost.
        let known: HashSet<&str> = stems.iter().map(String::as_str).collect();
        let suffix = format!(".{}", M::KIND.extension());
        for name in names(dir).during("list the cache")? {
            let Some(stem) = name.strip_suffix(&suffix) else { continue };
            if !is_stem(M::KIND, stem) || known.contains(stem) {
                continue;
            }
            if self.is_orphan_removable(M::KIND, &name)? {
                tracing::warn!(kind = ?M::KIND, entry = stem, "file without description removed");
                self.remove_files(M::KIND, stem, &self.publishing())?;
            }
        }
        Ok(records)
    }
}
