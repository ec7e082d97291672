//! What a pull shows: a bar for each blob on a terminal, plain lines elsewhere.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sctl_proto::v1::{
    Level as NoticeLevel, Stage,
    pull_event::{Notice, Progress, Resolved},
};

use super::{Level, message, printable, shows, size_text};
use crate::daemon::Reporter;

/// Where there is no terminal, a blob is heard of at most that often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// What the pull is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The user wants a file: every blob is told, also when it was there.
    File,
    /// The user wants a container: a hit in the cache takes one line.
    Container,
}

/// Shows a pull on stderr.
pub struct PullReport {
    purpose: Purpose,
    /// `None` where plain lines are printed.
    bars: Option<MultiProgress>,
    blobs: BTreeMap<String, Blob>,
    assembling: Option<Blob>,
    config_digest: String,
}

/// One blob, or the SIF.
struct Blob {
    bar: Option<ProgressBar>,
    fetched: bool,
    told: Instant,
}

impl PullReport {
    /// Begins: nothing is shown until there is news.
    pub fn new(purpose: Purpose) -> Self {
        let on_terminal = shows(Level::Info) && io::stderr().is_terminal();
        let bars = on_terminal.then(new_bars);
        Self { purpose, bars, blobs: BTreeMap::new(), assembling: None, config_digest: String::new() }
    }

    /// Prints a line that has no prefix, above the bars.
    fn line(&self, text: &str) {
        if shows(Level::Info) {
            // Nobody is left to tell when stderr is gone.
            self.above(|| drop(io::stderr().lock().write_all(format!("{text}\n").as_bytes())));
        }
    }

    fn message(&self, level: Level, text: &dyn fmt::Display) {
        self.above(|| message(level, text));
    }

    fn above(&self, print: impl FnOnce()) {
        match &self.bars {
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }

    fn new_blob(&self, label: &str, total: u64) -> Blob {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(total.max(1)));
            // The template is a constant, so it can only be right or always wrong.
            if let Ok(style) = ProgressStyle::with_template(" {prefix} [{bar:30}] {msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(label.to_owned());
            bar
        });
        Blob { bar, fetched: false, told: Instant::now() }
    }

    fn layer(&mut self, progress: &Progress, stage: Stage) {
        let digest = &progress.digest;
        if !self.blobs.contains_key(digest) {
            if stage == Stage::Pack && progress.finished {
                return;
            }
            self.line(&format!("Copying blob {digest}"));
            let blob = self.new_blob(&short(digest), progress.total_bytes);
            self.blobs.insert(digest.clone(), blob);
        }
        let Some(blob) = self.blobs.get_mut(digest) else { return };
        match stage {
            Stage::Fetch if progress.finished => blob.fetched = true,
            // Both stages run at once; packing is shown when it is all that is
            // left to wait for.
            Stage::Pack if !blob.fetched && !progress.finished => return,
            _ => {}
        }
        let text = describe(stage, progress);
        match &blob.bar {
            Some(bar) if stage == Stage::Fetch => {
                if progress.total_bytes > 0 {
                    bar.set_length(progress.total_bytes);
                }
                bar.set_position(progress.done_bytes);
                bar.set_message(text);
            }
            Some(bar) if progress.finished => bar.finish_with_message("done"),
            Some(bar) => bar.set_message(text),
            None if blob.told.elapsed() >= PLAIN_INTERVAL && !progress.finished => {
                blob.told = Instant::now();
                let what = if stage == Stage::Fetch { "Copying" } else { "Packing" };
                self.line(&format!("{what} blob {digest} {text}"));
            }
            None => {}
        }
    }

    fn assemble(&mut self, progress: &Progress) {
        if self.assembling.is_none() {
            for blob in self.blobs.values() {
                if let Some(bar) = blob.bar.as_ref().filter(|bar| !bar.is_finished()) {
                    bar.finish_with_message("done");
                }
            }
            // What follows stands below the bars of the blobs.
            self.bars = self.bars.as_ref().map(|_| new_bars());
            if !self.config_digest.is_empty() {
                self.line(&format!("Copying config {}", self.config_digest));
            }
            self.line("Writing manifest to image destination");
            self.message(Level::Info, &"Creating SIF file...");
            self.assembling = Some(self.new_blob("SIF file    ", progress.total_bytes));
        }
        let Some(blob) = &mut self.assembling else { return };
        let text = describe(Stage::Assemble, progress);
        match &blob.bar {
            Some(bar) if progress.finished => bar.finish_with_message("done"),
            Some(bar) => {
                if progress.total_bytes > 0 {
                    bar.set_length(progress.total_bytes);
                }
                bar.set_position(progress.done_bytes);
                bar.set_message(text);
            }
            None if blob.told.elapsed() >= PLAIN_INTERVAL && !progress.finished => {
                blob.told = Instant::now();
                self.line(&format!("Writing SIF file {text}"));
            }
            None => {}
        }
    }
}

impl Reporter for PullReport {
    fn resolved(&mut self, resolved: &Resolved) {
        self.config_digest = printable(&resolved.config_digest);
        if resolved.image_cached && self.purpose == Purpose::Container {
            self.message(Level::Info, &"Using cached SIF image");
            return;
        }
        if self.purpose == Purpose::Container {
            self.message(Level::Info, &"Converting OCI blobs to SIF format");
        }
        self.message(Level::Info, &"Starting build...");
        self.message(Level::Verbose, &format_args!("Manifest digest is {}", printable(&resolved.manifest_digest)));
        let mut told = Vec::new();
        for layer in resolved.layers.iter().filter(|layer| layer.cached || resolved.image_cached) {
            // An image may hold the same layer, often an empty one, twice.
            if !told.contains(&&layer.digest) {
                told.push(&layer.digest);
                self.line(&format!("Skipping fetch of repeat blob {}", printable(&layer.digest)));
            }
        }
        if resolved.image_cached {
            self.message(Level::Info, &"Using cached SIF image");
        }
    }

    fn progress(&mut self, progress: &Progress) {
        let mut progress = progress.clone();
        progress.digest = printable(&progress.digest);
        match progress.stage() {
            stage @ (Stage::Fetch | Stage::Pack) => self.layer(&progress, stage),
            Stage::Assemble => self.assemble(&progress),
            // A stage of a newer daemon.
            Stage::Unspecified => {}
        }
    }

    fn notice(&mut self, notice: &Notice) {
        let level = match notice.level() {
            NoticeLevel::Warning => Level::Warning,
            NoticeLevel::Info => Level::Info,
            NoticeLevel::Verbose | NoticeLevel::Unspecified => Level::Verbose,
        };
        self.message(level, &printable(&notice.text));
    }

    fn finished(&mut self) {
        for bar in self.blobs.values().chain(&self.assembling).filter_map(|blob| blob.bar.as_ref()) {
            if !bar.is_finished() {
                bar.abandon();
            }
        }
    }
}

fn new_bars() -> MultiProgress {
    MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10))
}

impl Drop for PullReport {
    /// An interrupted pull leaves its bars as they are.
    fn drop(&mut self) {
        self.finished();
    }
}

/// How far something is.
fn describe(stage: Stage, progress: &Progress) -> String {
    let done = size_text(progress.done_bytes);
    match (stage, progress.total_bytes) {
        (Stage::Pack, _) => format!("{done} unpacked and compressed again"),
        (_, 0) => done,
        (_, total) => format!("{done} / {}", size_text(total)),
    }
}

/// The first digits of a digest.
fn short(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_shortened_as_others_do() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("ü"), "ü");
    }

    #[test]
    fn progress_without_a_total_shows_what_is_known() {
        let progress = Progress { done_bytes: 1 << 20, total_bytes: 0, ..Progress::default() };
        assert_eq!(describe(Stage::Fetch, &progress), "1.00 MiB");
        let progress = Progress { total_bytes: 2 << 20, ..progress };
        assert_eq!(describe(Stage::Fetch, &progress), "1.00 MiB / 2.00 MiB");
    }
}
