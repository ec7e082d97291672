//! An engine that does as it is told, served on real sockets.

use std::{
    fs::File,
    io::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use sctl_common::{Digest, ErrorKind, Platform, Reference};
use sctl_daemon::{Config, Ended, Mode, ServerOptions, Settings, Sockets, serve};
use sctl_engine::{
    CacheCleaned, CacheEntry, CacheInfo, Caller, Engine, Failure, JobInfo, JobWork, MountWish, OpenTarget, Opened,
    PullEvent, PullEvents, PullJob, Ticket, UnmountTarget, UnmountedImage,
    cache::{CacheTotals, Grant, HeldLease, ImageKey, Lease},
    mount::MountInfo,
};
use tokio::sync::{mpsc, oneshot};

/// The ticket that [`Fake`] honours.
pub const TICKET: Ticket = Ticket([7; 16]);

/// What the file behind [`TICKET`] holds.
pub const CONTENT: &[u8] = b"the bytes of a SIF";

/// Names the image that [`Fake`] speaks of.
pub fn key() -> ImageKey {
    ImageKey::new("docker://registry.example/image", &Digest::of(b"manifest"), "profile")
}

/// An engine that does as it is told.
#[derive(Debug, Default)]
pub struct Fake {
    /// What each pull says.
    pub script: Vec<Result<PullEvent, Failure>>,
    /// Pulls do not end after their script.
    pub hangs: bool,
    /// Who called, for what.
    pub calls: Mutex<Vec<(Caller, String)>>,
    /// Pulls whose caller has left.
    pub left: Arc<Mutex<usize>>,
    /// Pulls that are under way.
    pub active: Arc<Mutex<usize>>,
}

impl Fake {
    fn called(&self, caller: Caller, what: impl Into<String>) {
        self.calls.lock().unwrap().push((caller, what.into()));
    }
}

impl Engine for Fake {
    fn pull(&self, caller: Caller, job: PullJob) -> PullEvents {
        self.called(caller, format!("pull {}", job.reference));
        let (sender, receiver) = mpsc::channel(1);
        let (script, hangs) = (self.script.clone(), self.hangs);
        let (left, active) = (Arc::clone(&self.left), Arc::clone(&self.active));
        *active.lock().unwrap() += 1;
        tokio::spawn(async move {
            for event in script {
                if sender.send(event).await.is_err() {
                    break;
                }
            }
            if hangs {
                sender.closed().await;
                *left.lock().unwrap() += 1;
            }
            *active.lock().unwrap() -= 1;
        });
        receiver
    }

    async fn open(&self, caller: Caller, target: OpenTarget, wish: MountWish) -> Option<Opened> {
        self.called(caller, "open");
        if target != OpenTarget::Ticket(TICKET) {
            return None;
        }
        let path = std::env::temp_dir().join(format!("sctl-fake-{}-{:p}", std::process::id(), self));
        File::create(&path).and_then(|mut file| file.write_all(CONTENT)).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let reference = Reference::parse("registry.example/image:1").unwrap();
        let mut opened = Opened::new(file, Digest::of(b"manifest"), reference, path);
        if wish != MountWish::None {
            opened.no_mount = Some("there are none here".to_owned());
        }
        Some(opened)
    }

    async fn cache_list(&self, caller: Caller) -> Result<Vec<CacheEntry>, Failure> {
        self.called(caller, "list");
        Ok(Vec::new())
    }

    async fn cache_info(&self, caller: Caller) -> Result<CacheInfo, Failure> {
        self.called(caller, "info");
        let totals = CacheTotals { images: 3, ..CacheTotals::default() };
        Ok(CacheInfo { totals, path: "/cache".into(), ..CacheInfo::default() })
    }

    async fn cache_clean(&self, caller: Caller, dry_run: bool) -> Result<CacheCleaned, Failure> {
        self.called(caller, format!("clean {dry_run}"));
        Err(Failure::new(ErrorKind::Denied, "not you").hint("ask"))
    }

    async fn admin_mounts(&self, caller: Caller) -> Result<Vec<MountInfo>, Failure> {
        self.called(caller, "mounts");
        Ok(vec![MountInfo {
            key: key(),
            references: vec!["registry.example/image:1".to_owned()],
            loop_device: 7,
            private_for: Some(1000),
            shared: false,
            attached: 3,
            users: vec![1000],
            since: 5,
            last_attach: None,
            held_by_clients: true,
            adopted: false,
        }])
    }

    async fn admin_leases(&self, caller: Caller) -> Result<Vec<HeldLease>, Failure> {
        self.called(caller, "leases");
        let remaining = Duration::from_millis(1);
        let lease = |grant| HeldLease {
            grant,
            reference: "registry.example/image:1".to_owned(),
            platform: Platform::host(),
            lease: Lease { key: key(), manifest: Digest::of(b"manifest"), remaining },
        };
        Ok(vec![lease(Grant::Public), lease(Grant::Uid(0))])
    }

    async fn admin_jobs(&self, caller: Caller) -> Result<Vec<JobInfo>, Failure> {
        self.called(caller, "jobs");
        Ok(vec![JobInfo {
            pid: 9,
            work: JobWork::Layer { number: 2, count: 3 },
            reference: Reference::parse("registry.example/image:1").unwrap(),
            uids: vec![1, 2],
            running: Duration::from_millis(1900),
            done_bytes: 4,
            total_bytes: None,
        }])
    }

    async fn admin_unmount(&self, caller: Caller, target: UnmountTarget) -> Result<Vec<UnmountedImage>, Failure> {
        self.called(caller, format!("unmount {target:?}"));
        Err(Failure::new(ErrorKind::NotFound, "no such image is mounted"))
    }

    fn active(&self) -> usize {
        *self.active.lock().unwrap()
    }

    async fn shutdown(&self, deadline: Duration) {
        self.called(Caller { uid: 0, gid: 0, account: 0, admin: true }, format!("shutdown {}", deadline.as_secs()));
    }
}

/// A served engine.
pub struct Served {
    /// The engine.
    pub engine: Arc<Fake>,
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Ended>>,
}

impl Served {
    /// Serves `engine` as a user daemon, until it is idle for `idle`.
    pub fn start(engine: Fake, idle: Option<Duration>) -> Self {
        Self::start_as(Mode::User { uid: rustix::process::geteuid().as_raw() }, engine, idle)
    }

    /// Serves everybody.
    pub fn start_system(engine: Fake) -> Self {
        let served = Self::start_as(Mode::System, engine, None);
        std::fs::set_permissions(served.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        served
    }

    fn start_as(mode: Mode, engine: Fake, idle: Option<Duration>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            mode,
            cache_dir: dir.path().join("cache"),
            socket: dir.path().join("sctl.sock"),
            mount_socket: dir.path().join("mount.sock"),
            job_socket: None,
            own_socket_dir: false,
            idle,
            config: Config::default(),
        };
        let sockets = Sockets::open(&settings, Vec::new()).unwrap();
        let engine = Arc::new(engine);
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&engine);
        let thread = std::thread::spawn(move || {
            let options = ServerOptions {
                mode,
                admin_gid: None,
                idle,
                deadline: Duration::from_secs(9),
                patience: Duration::from_millis(300),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let stop = async {
                let _ = stopped.await;
            };
            runtime.block_on(serve(serving, sockets, &options, stop, || {})).unwrap()
        });
        Self { engine, dir, stop: Some(stop), thread: Some(thread) }
    }

    /// The gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sctl.sock")
    }

    /// The packet socket.
    pub fn mount_socket(&self) -> PathBuf {
        self.dir.path().join("mount.sock")
    }

    /// Asks it to stop.
    pub fn stop(&mut self) -> Ended {
        let _ = self.stop.take().unwrap().send(());
        self.ended()
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> Ended {
        self.thread.take().unwrap().join().unwrap()
    }

    /// Calls made so far, without their callers.
    pub fn calls(&self) -> Vec<String> {
        self.engine.calls.lock().unwrap().iter().map(|(_, what)| what.clone()).collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for a condition, up to ten seconds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A client of `socket`, and the runtime that it needs.
pub fn client(
    socket: &std::path::Path,
) -> (tokio::runtime::Runtime, sctl_proto::v1::sctl_client::SctlClient<tonic::transport::Channel>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let uri = format!("unix://{}", socket.display());
    let channel = runtime.block_on(tonic::transport::Endpoint::from_shared(uri).unwrap().connect()).unwrap();
    (runtime, sctl_proto::v1::sctl_client::SctlClient::new(channel))
}
