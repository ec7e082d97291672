//! A token server for a real `docker-registry`: signed tokens (JWT, ES256).
//!
//! # Source
//! The distribution project's token authentication implementation: header
//! `x5c`, claims `iss aud sub exp nbf iat jti access`. The registry grants 60
//! seconds beyond `exp`, so tokens are dated back by that much to die in time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::json;

use super::{
    Part, Seen,
    http::{Reply, Request, Server},
    lock,
    token::basic,
};
use crate::programs::Scratch;

/// Name that tokens are issued under.
pub const ISSUER: &str = "tests";
/// Name that the registry has at the token server.
pub const SERVICE: &str = "registry.test";
/// What the registry grants beyond a token's end.
const LEEWAY: Duration = Duration::from_secs(60);

/// A running token server; it ends with this value.
pub struct TokenServer {
    server: Server,
    certificate: PathBuf,
    log: Arc<Mutex<Vec<Seen>>>,
    _scratch: Scratch,
}

struct Signer {
    key: EcdsaKeyPair,
    certificate: String,
    user: Option<(String, String)>,
    life: Duration,
}

impl TokenServer {
    /// Starts a server whose tokens are good for `life`. With a `user`, only
    /// that one gets tokens that grant what was asked for; everybody else gets
    /// tokens that grant nothing.
    ///
    /// # Panics
    /// If `openssl` is not there to make a key.
    pub fn start(user: Option<(&str, &str)>, life: Duration) -> Self {
        let scratch = Scratch::new();
        let (key_path, certificate) = (scratch.join("key.pem"), scratch.join("certificate.pem"));
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=token server of tests", "-keyout"])
            .arg(&key_path)
            .arg("-out")
            .arg(&certificate)
            .output()
            .expect("openssl runs (tests/install.sh installs it)");
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        let key = STANDARD.decode(pem_body(&key_path)).expect("a PEM file holds base64");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &SystemRandom::new())
            .expect("openssl makes PKCS#8 keys");
        let signer = Signer {
            key,
            certificate: pem_body(&certificate),
            user: user.map(|(name, password)| (name.to_owned(), password.to_owned())),
            life,
        };
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&log);
        let server = Server::start(move |request, connection| {
            let reply = signer.answer(request);
            lock(&sink).push(request.seen(Part::Auth, reply.status));
            connection.send(&reply, None)
        });
        Self { server, certificate, log, _scratch: scratch }
    }

    /// URL to be named as the registry's realm.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.server.address())
    }

    /// PEM file that the registry has to trust (`rootcertbundle`).
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Requests so far.
    pub fn log(&self) -> Vec<Seen> {
        lock(&self.log).clone()
    }
}

impl Signer {
    fn answer(&self, request: &Request) -> Reply {
        let known = match (request.header("authorization"), &self.user) {
            (None, user) => user.is_none(),
            (Some(given), Some((name, password))) if given == basic(name, password) => true,
            (Some(_), _) => return Reply::error(401, "UNAUTHORIZED", "incorrect username or password"),
        };
        let pairs = request.pairs();
        let wanted = pairs.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' '));
        let access: Vec<_> = wanted
            .filter(|_| known)
            .filter_map(|scope| {
                let (rest, actions) = scope.rsplit_once(':')?;
                let (kind, name) = rest.split_once(':')?;
                Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
            })
            .collect();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
        let claims = json!({
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": "",
            "iat": (now - LEEWAY).as_secs(),
            "nbf": (now - LEEWAY).as_secs(),
            "exp": (now + self.life - LEEWAY).as_secs(),
            "jti": now.as_nanos().to_string(),
            "access": access,
        });
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.certificate]});
        let encode = |text: String| URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("signing has all it needs");
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        Reply::json(200, json!({"token": token, "expires_in": self.life.as_secs()}).to_string())
    }
}

/// The base64 between a PEM file's first two marks, on one line.
fn pem_body(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("openssl wrote the file");
    text.lines()
        .skip_while(|line| !line.starts_with("-----BEGIN"))
        .skip(1)
        .take_while(|l| !l.starts_with('-'))
        .collect()
}
