//! `sctld`: reads its settings, opens its sockets, and serves.
#![forbid(unsafe_code)]

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser as _;
use sctl_daemon::{
    Arguments, Internal, Mode, PreparedMounts, ServerOptions, Settings, Sockets, logs, prepare_mounts, serve,
};
use sctl_engine::{Broker, BrokerOptions, JobUser, Network, registry::Proxies};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Internal::Job { fds }) => return sctl_engine::job::main(fds),
        Some(Internal::MountHelper) => return sctl_engine::mount::helper_main(),
        None => {}
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // As sctl tells its failures.
            let mut chain = error.chain();
            eprintln!("FATAL:   {}", chain.next().map(ToString::to_string).unwrap_or_default());
            chain.for_each(|cause| eprintln!("  cause: {cause}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // First of all: later descriptors could take the numbers of missing ones.
    let passed = sd_notify::listen_fds().context("cannot read what the service manager passed")?.len();
    let inherited = sctl_sys::spawn::take_inherited(passed).context("cannot use the service manager's sockets")?;

    let settings = Settings::resolve(arguments)?;
    logs::start(&settings.config.log)?;
    // Jobs and the cache decide modes themselves; nothing of ours is for
    // others to write.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    std::env::set_current_dir("/").context("cannot change to /")?;
    raise_open_files();
    // Before there are threads: they would stay in the host's mount namespace.
    let mounts = prepare_mounts(&settings);

    let sockets = Sockets::open(&settings, inherited)?;
    let (engine, admin_gid) = open_engine(&settings, mounts)?;
    let options = ServerOptions {
        mode: settings.mode,
        admin_gid,
        // A socket that the service manager keeps open needs no daemon
        // behind it; one of our own is closed first.
        idle: settings.idle,
        deadline: Duration::from_secs(settings.config.shutdown_seconds),
        patience: Duration::from_secs(5),
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = ?settings.mode,
        socket = %settings.socket.display(),
        activated = sockets.are_inherited(),
        cache = %settings.cache_dir.display(),
        "starting"
    );

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Each thread costs memory, and the broker only waits for disks.
        .max_blocking_threads(16)
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            notify(&[NotifyState::Stopping]);
        };
        let ready = || notify(&[NotifyState::Ready]);
        Ok::<_, anyhow::Error>(serve(Arc::new(engine), sockets, &options, stop, ready).await?)
    });
    // Blocking work (a slow disk) must not hold the exit back.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ok(ended) => {
            info!(?ended, "left");
            Ok(())
        }
        Err(error) => {
            error!(error = format!("{error:#}"), "cannot serve");
            Err(error)
        }
    }
}

fn open_engine(settings: &Settings, mounts: PreparedMounts) -> anyhow::Result<(Broker, Option<u32>)> {
    let config = &settings.config;
    let (job_user, admin_gid) = match settings.mode {
        Mode::User { .. } => (None, None),
        Mode::System => {
            let user = JobUser::lookup(&config.job_user).context("there is no user for jobs")?;
            let group = sctl_daemon::group_id(&config.admin_group).context("cannot read the groups")?;
            if group.is_none() {
                info!(group = config.admin_group, "no such group: only root administers the cache");
            }
            (Some(user), group)
        }
    };
    let environment = |names: &[&str]| names.iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    let network = Network {
        proxies: Proxies {
            http: config.proxy.http.clone().or_else(|| environment(&["http_proxy", "HTTP_PROXY"])),
            https: config.proxy.https.clone().or_else(|| environment(&["https_proxy", "HTTPS_PROXY"])),
            no_proxy: config
                .proxy
                .no_proxy
                .clone()
                .or_else(|| environment(&["no_proxy", "NO_PROXY"]))
                .unwrap_or_default(),
        },
        ca_files: config.ca_files.iter().cloned().chain(environment(&["SSL_CERT_FILE"]).map(Into::into)).collect(),
    };
    let options = BrokerOptions {
        cache_dir: settings.cache_dir.clone(),
        user_mode: settings.mode.is_user(),
        compression: config.compression,
        block_size: config.block_size,
        keep_blobs: config.keep_blobs,
        min_free_percent: config.min_free_percent,
        lease: Duration::from_secs(config.lease_seconds),
        max_layer_jobs: config.max_layer_jobs,
        max_pulls_per_user: config.max_pulls_per_user,
        min_bytes_per_second: config.min_bytes_per_second,
        threads: config.threads,
        limits: config.limits,
        job_user,
        network,
    };
    let engine = Broker::open(options, mounts).context("cannot open the cache")?;
    Ok((engine, admin_gid))
}

/// Every client, job and layer holds descriptors; the usual soft limit of
/// 1,024 is for programs that use select(2).
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(65_536).min(65_536);
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
    {
        warn!(%error, "cannot raise the limit of open files");
    }
}

/// Tells the service manager, if there is one.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot notify the service manager");
    }
}
