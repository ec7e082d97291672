//! A real registry (`docker-registry`) on a loopback port.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::programs::{Scratch, wait_until};

/// A running registry; it ends with this value.
pub struct Registry {
    child: Child,
    port: u16,
    log: Arc<Mutex<Vec<String>>>,
    _scratch: Scratch,
}

/// What the registry demands of its clients.
#[derive(Default)]
pub struct Demands {
    /// Name and password of the only user (Basic authentication).
    pub user: Option<(String, String)>,
    /// Certificate and key in PEM files.
    pub tls: Option<(std::path::PathBuf, std::path::PathBuf)>,
    /// URL of a token server, and the PEM file of the certificate that signs
    /// its tokens ([`crate::hub::TokenServer`]).
    pub token: Option<(String, std::path::PathBuf)>,
}

/// A port that nobody listens on at this moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("bind a loopback port").port()
}

impl Registry {
    /// Starts a registry that serves everybody over plain HTTP.
    pub fn start() -> Self {
        Self::start_with(&Demands::default())
    }

    /// Starts a registry with demands.
    pub fn start_with(demands: &Demands) -> Self {
        let scratch = Scratch::new();
        let port = free_port();
        let storage = scratch.join("storage");
        let mut config = format!(
            "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: false\nstorage:\n  delete:\n    enabled: true\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            storage.display()
        );
        if let Some((certificate, key)) = &demands.tls {
            config += &format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
        }
        if let Some((user, password)) = &demands.user {
            let output = Command::new("htpasswd").args(["-Bbn", user, password]).output().expect("htpasswd runs");
            let path = scratch.join("htpasswd");
            fs::write(&path, output.stdout).expect("write htpasswd");
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display());
        }
        if let Some((realm, certificate)) = &demands.token {
            let (service, issuer) = (crate::hub::SERVICE, crate::hub::ISSUER);
            config += &format!(
                "auth:\n  token:\n    realm: {realm}\n    service: {service}\n    issuer: {issuer}\n    rootcertbundle: {}\n",
                certificate.display()
            );
        }
        let config_path = scratch.join("registry.yml");
        fs::write(&config_path, config).expect("write the registry's configuration");
        let mut child = Command::new("docker-registry")
            .args(["serve".as_ref(), config_path.as_os_str()])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry runs (tests/install.sh installs it)");
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let sink = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                sink.lock().expect("nobody panics with the lock").push(line);
            }
        });
        wait_until("the registry listens", Duration::from_secs(20), || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { child, port, log, _scratch: scratch }
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Reference of a repository here, without `docker://`.
    pub fn reference(&self, name_and_tag: &str) -> String {
        format!("{}/{name_and_tag}", self.host())
    }

    /// Writes `image` and pushes it as `name_and_tag`; returns the digest.
    pub fn seed(&self, image: &crate::image::Image, name_and_tag: &str) -> sctl_common::Digest {
        let scratch = Scratch::new();
        let digest = image.write_layout(scratch.path(), "seed");
        crate::image::push(scratch.path(), "seed", &self.reference(name_and_tag), None);
        digest
    }

    /// Pushes `layout:tag` as `name_and_tag`.
    pub fn push(&self, layout: &Path, tag: &str, name_and_tag: &str) {
        crate::image::push(layout, tag, &self.reference(name_and_tag), None);
    }

    /// Access-log lines of successful GETs of blobs so far: path of each.
    pub fn blob_gets(&self) -> Vec<String> {
        // The log is written by another process: let it catch up.
        std::thread::sleep(Duration::from_millis(150));
        self.log
            .lock()
            .expect("nobody panics with the lock")
            .iter()
            .filter_map(|line| {
                let request = line.split('"').nth(1)?;
                let path = request.strip_prefix("GET ")?.split(' ').next()?;
                path.contains("/blobs/sha256:").then(|| path.to_owned())
            })
            .collect()
    }

    /// Forgets the access log.
    pub fn clear_log(&self) {
        std::thread::sleep(Duration::from_millis(150));
        self.log.lock().expect("nobody panics with the lock").clear();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
