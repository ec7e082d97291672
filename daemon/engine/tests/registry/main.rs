//! The registry client against a fake with the manners of Docker Hub, and
//! against a real registry.

mod auth;
mod blobs;
mod manifests;
mod real;
mod redirects;

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use sctl_common::{Digest, Platform, Reference};
use sctl_engine::registry::{BlobSource, Client, ClientOptions, Notice, RegistryError, RetryPolicy, Timeouts};
use sctl_tests::hub::Hub;

/// Runs `future` as a job does: on one thread.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("build a runtime");
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("within a minute") })
}

/// Settings that do not wait as long as real ones.
fn options() -> ClientOptions {
    ClientOptions {
        retry: RetryPolicy {
            attempts: 4,
            first_delay: Duration::from_millis(10),
            max_delay: Duration::from_millis(50),
            max_total_wait: Duration::from_secs(5),
        },
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            response: Duration::from_secs(5),
            stall: Duration::from_millis(500),
        },
        ..ClientOptions::default()
    }
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).expect("a good reference")
}

fn amd64() -> Platform {
    "amd64".parse().expect("a known platform")
}

/// A client for `repository` of the fake.
fn client(hub: &Hub, repository: &str, options: ClientOptions) -> Client {
    Client::new(&reference(&hub.reference(repository)), options).expect("good settings")
}

/// Collects notices.
fn listening(options: ClientOptions) -> (ClientOptions, Arc<Mutex<Vec<Notice>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&heard);
    let notices = Arc::new(move |notice| sink.lock().unwrap().push(notice));
    (ClientOptions { notices, ..options }, heard)
}

/// Bytes that do not repeat.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(len).collect()
}

fn source(digest: Digest, size: usize) -> BlobSource {
    BlobSource { digest, size: size as u64, urls: Vec::new() }
}

/// Fetches a whole blob.
async fn fetch(client: &Client, source: BlobSource) -> Result<Vec<u8>, RegistryError> {
    let mut stream = client.fetch_blob(source);
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// An error with its causes, as users see it.
fn story(error: &RegistryError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text += &format!("\n  cause: {cause}");
        next = cause.source();
    }
    text
}
