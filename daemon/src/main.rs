//! `sctld`: reads its settings, opens its sockets, and serves.
#![forbid(unsafe_code)]

use std::{
    convert::Infallible, io::Write as _, os::fd::OwnedFd, path::PathBuf, process::ExitCode, sync::Arc, time::Duration,
};

use anyhow::Context as _;
use clap::Parser as _;
use sctl_daemon::{
    Arguments, Config, Internal, Manager, Mode, PreparedMounts, Reloader, ServerOptions, Settings, SettingsError,
    Sockets, logs, manual, prepare_mounts, serve,
};
use sctl_engine::{Broker, BrokerOptions, Engine as _, JobUser, Network, registry::Proxies};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// Status for a configuration that cannot be used (EX_CONFIG of sysexits.h):
/// another try would end alike, which the service manager should know.
const UNUSABLE: u8 = 78;

/// How long opening the cache may take: after a loss of power it looks at every
/// entry that was not on the disk for sure.
const OPENING: Duration = Duration::from_secs(15 * 60);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Some(Internal::Job { fds }) => return sctl_engine::job::main(fds),
        Some(Internal::MountHelper) => return sctl_engine::mount::helper_main(),
        Some(Internal::Launcher) => launch(),
        Some(Internal::Man { page }) => print_manual(&page),
        None if arguments.check => check(&arguments),
        None => run(arguments),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            // As sctl tells its failures.
            let mut chain = error.chain();
            eprintln!("FATAL:   {}", chain.next().map(ToString::to_string).unwrap_or_default());
            chain.for_each(|cause| eprintln!("  cause: {cause}"));
            if error.is::<SettingsError>() { ExitCode::from(UNUSABLE) } else { ExitCode::FAILURE }
        }
    }
}

/// Says whether a daemon could start, or reload, with the configuration that
/// there is now.
fn check(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::resolve(arguments)?;
    logs::parse_filter(&settings.config.log.level)?;
    broker_options(&settings)?.check()?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a page of the manual.
fn print_manual(name: &str) -> anyhow::Result<ExitCode> {
    let page = manual::page(name).with_context(|| format!("unknown page {name:?}; known are sctld and sctld.toml"))?;
    std::io::stdout().write_all(page.as_bytes()).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// The launcher of jobs: no configuration, no mode, nothing but its socket.
fn launch() -> anyhow::Result<ExitCode> {
    let mut inherited = take_sockets()?;
    let listener = inherited.pop().context("the service manager passed no socket")?;
    anyhow::ensure!(inherited.is_empty(), "the service manager passed more than one socket");
    logs::start(&Config::default().log)?;
    Ok(sctl_engine::job::launcher::main(listener))
}

/// What the service manager passed, from descriptor 3 on.
fn take_sockets() -> anyhow::Result<Vec<OwnedFd>> {
    let passed = sd_notify::listen_fds().context("cannot read what the service manager passed")?.len();
    sctl_sys::spawn::take_inherited(passed).context("cannot use the service manager's sockets")
}

fn run(mut arguments: Arguments) -> anyhow::Result<ExitCode> {
    // First of all: later descriptors could take the numbers of missing ones.
    let inherited = take_sockets()?;

    // It is read again after the working directory has changed.
    arguments.config =
        arguments.config.map(std::path::absolute).transpose().context("cannot tell the working directory")?;
    let settings = Settings::resolve(&arguments)?;
    let filter = logs::start(&settings.config.log)?;
    // Jobs and the cache decide modes themselves; nothing of ours is for
    // others to write.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    std::env::set_current_dir("/").context("cannot change to /")?;
    raise_open_files();
    // Before there are threads: they would stay in the host's mount namespace.
    let mounts = prepare_mounts(&settings);

    let sockets = Sockets::open(&settings, inherited)?;
    let manager = Manager::from_environment();
    manager.starting("opening the cache", OPENING);
    let (engine, admin_gid) = open_engine(&settings, mounts)?;
    let engine = Arc::new(engine);
    let _record = SocketRecord::leave(&settings);
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
            manager.stopping();
        };
        let hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
        let reloader = Reloader::new(arguments, &settings.config, filter);
        let ready = || manager.ready(&status(&engine));
        tokio::select! {
            ended = serve(Arc::clone(&engine), sockets, &options, stop, ready) => Ok::<_, anyhow::Error>(ended?),
            never = reload(hangup, reloader, &manager, &engine) => match never {},
            never = manager.attend(|| engine.answer(), || status(&engine)) => match never {},
        }
    });
    manager.stopping();
    // Blocking work (a slow disk) must not hold the exit back.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ok(ended) => {
            info!(?ended, "left");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            error!(error = format!("{error:#}"), "cannot serve");
            Err(error)
        }
    }
}

/// A link in a user's cache to the socket of the daemon that has it, so that
/// clients with another environment find this one. Removed at the end.
struct SocketRecord(PathBuf);

impl SocketRecord {
    fn leave(settings: &Settings) -> Option<Self> {
        if !settings.mode.is_user() {
            return None;
        }
        let link = settings.cache_dir.join(sctl_sys::proc::socket_record());
        let fresh = settings.cache_dir.join(format!("tmp/socket-{}", std::process::id()));
        let left = std::os::unix::fs::symlink(&settings.socket, &fresh).and_then(|()| std::fs::rename(&fresh, &link));
        match left {
            Ok(()) => Some(Self(link)),
            Err(error) => {
                // Others with another environment cannot use this cache meanwhile.
                warn!(%error, "cannot leave a link to the socket in the cache");
                None
            }
        }
    }
}

impl Drop for SocketRecord {
    fn drop(&mut self) {
        // A stale one leads to nobody, and is replaced by the next daemon.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Reads the configuration again whenever SIGHUP asks for it.
async fn reload(mut hangup: Signal, mut reloader: Reloader, manager: &Manager, engine: &Broker) -> Infallible {
    loop {
        if hangup.recv().await.is_none() {
            return std::future::pending().await;
        }
        manager.reloading();
        let reloaded = reloader.reload(|settings| Ok(engine.reconfigure(broker_options(settings)?)?));
        match reloaded {
            Ok(()) => manager.ready(&status(engine)),
            Err(error) => manager.ready(&format!("the old configuration stays in force: {error}")),
        }
    }
}

/// A line for `systemctl status`.
fn status(engine: &Broker) -> String {
    match engine.active() {
        0 => "ready".to_owned(),
        active => format!("ready; pulls and jobs under way: {active}"),
    }
}

fn open_engine(settings: &Settings, mounts: PreparedMounts) -> anyhow::Result<(Broker, Option<u32>)> {
    let config = &settings.config;
    let admin_gid = match settings.mode {
        Mode::User { .. } => None,
        Mode::System => {
            let group = sctl_daemon::group_id(&config.admin_group).context("cannot read the groups")?;
            if group.is_none() {
                info!(group = config.admin_group, "no such group: only root administers the cache");
            }
            group
        }
    };
    let engine = Broker::open(broker_options(settings)?, mounts).context("cannot open the cache")?;
    Ok((engine, admin_gid))
}

fn broker_options(settings: &Settings) -> anyhow::Result<BrokerOptions> {
    let config = &settings.config;
    let job_user = match settings.mode {
        Mode::User { .. } => None,
        // The launcher is that user already.
        Mode::System if settings.job_socket.is_some() => None,
        Mode::System => Some(JobUser::lookup(&config.job_user).context("there is no user for jobs")?),
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
    Ok(BrokerOptions {
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
        job_socket: settings.job_socket.clone(),
        network,
    })
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
