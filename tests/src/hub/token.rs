//! The token server: opaque tokens with a life of their own.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use base64::Engine as _;

use super::{
    Part, Shared, State,
    api::send,
    fault::At,
    http::{After, Connection, Reply, Request},
    manners::Login,
};

/// Tokens given out.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    given: BTreeMap<String, Given>,
    count: u64,
}

#[derive(Debug)]
struct Given {
    until: Instant,
    scopes: Vec<String>,
}

/// What a token is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    Expired,
    TooLittle,
    Unknown,
}

impl Tokens {
    pub(crate) fn expire(&mut self) {
        let now = Instant::now();
        self.given.values_mut().for_each(|given| given.until = now);
    }

    pub(crate) fn check(&self, token: &str, scope: Option<&str>) -> Verdict {
        match (self.given.get(token), scope) {
            (None, _) => Verdict::Unknown,
            (Some(given), _) if given.until <= Instant::now() => Verdict::Expired,
            (Some(given), Some(scope)) if !given.scopes.iter().any(|found| found == scope) => Verdict::TooLittle,
            _ => Verdict::Good,
        }
    }

    fn give(&mut self, life: Duration, scopes: Vec<String>) -> String {
        self.count += 1;
        let token = format!("token-{}", self.count);
        self.given.insert(token.clone(), Given { until: Instant::now() + life, scopes });
        token
    }
}

/// `Authorization` of a user.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

pub(crate) fn serve(shared: &Shared, request: &Request, connection: &mut Connection) -> io::Result<After> {
    let misdeed = shared.misdeed(&At::Token);
    let reply = match request.path.as_str() {
        "/token" => answer(&mut shared.state(), request),
        _ => Reply::text(404, "404 page not found\n"),
    };
    send(shared, Part::Auth, request, connection, reply, misdeed)
}

fn answer(state: &mut State, request: &Request) -> Reply {
    let Login::Token { user, identity_token, knows_post, life, told_life } = state.manners.login.clone() else {
        return Reply::text(404, "404 page not found\n");
    };
    let pairs = request.pairs();
    let get = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    if get("service") != Some("registry.test") || (request.method == "GET" && get("tenant") != Some("1")) {
        return Reply::text(400, "this is not our registry\n");
    }
    let wrong = || Reply::json(401, r#"{"details":"incorrect username or password"}"#);
    let known = match request.method.as_str() {
        "POST" if !knows_post => return Reply::text(404, "404 page not found\n"),
        "POST" => {
            if get("grant_type") != Some("refresh_token") || get("refresh_token") != identity_token.as_deref() {
                return wrong();
            }
            true
        }
        _ => match (request.header("authorization"), &user) {
            (None, user) => user.is_none(),
            (Some(given), Some((name, password))) => {
                let by_identity = identity_token.as_ref().is_some_and(|token| given == basic("<token>", token));
                if given != basic(name, password) && !by_identity {
                    return wrong();
                }
                true
            }
            (Some(_), None) => return wrong(),
        },
    };
    // Who is not known gets a token too: one that grants nothing.
    let scopes = if known {
        let wanted = pairs.iter().filter(|(key, _)| key == "scope");
        wanted.flat_map(|(_, value)| value.split(' ')).map(str::to_owned).collect()
    } else {
        Vec::new()
    };
    let token = state.tokens.give(life, scopes);
    let name = if request.method == "POST" { "access_token" } else { "token" };
    let told = told_life.map_or_else(String::new, |seconds| format!(r#","expires_in":{seconds}"#));
    Reply::json(200, format!(r#"{{"{name}":"{token}","issued_at":"2026-01-01T00:00:00Z"{told}}}"#))
}
