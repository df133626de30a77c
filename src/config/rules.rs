//! Rules between keys, and what only the machine can say: files that must be readable.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use rustix::fs::Access;

use super::{Mistake, Origin, build::Values, sims, value::without_password};
use crate::{
    auth::TokenConfig,
    event::Iccid,
    globalsim::{KeySource, Secret},
    webhooks::{
        outbound::{self, Proxy},
        secret::Sealer,
    },
};

/// What the rules make of values that hold.
pub struct Checked {
    /// Legal, but worth a second look.
    pub warnings: Vec<String>,
    /// The API key; None where that is a mistake.
    pub key: Option<KeySource>,
    /// SIMs of both keys of `[sims]`.
    pub iccids: Vec<Iccid>,
}

/// Checks what no single value shows.
pub fn check(values: &Values, tokens: &[TokenConfig], mistakes: &mut Vec<Mistake>) -> Checked {
    let mut rules = Rules { values, mistakes, warnings: Vec::new() };
    rules.base_url();
    let key = rules.key();
    rules.budget();
    rules.retention();
    rules.nats();
    rules.listeners();
    rules.exposure(tokens);
    rules.pseudonyms();
    rules.webhooks();
    let iccids = rules.sims();
    Checked { warnings: rules.warnings, key, iccids }
}

struct Rules<'v, 'm> {
    values: &'v Values,
    mistakes: &'m mut Vec<Mistake>,
    warnings: Vec<String>,
}

impl Rules<'_, '_> {
    fn wrong(&mut self, key: &str, problem: impl Into<String>, cure: impl Into<String>) {
        let origin = self.values.origin(key);
        self.mistakes.push(Mistake {
            key: key.to_owned(),
            origin,
            problem: problem.into(),
            cure: cure.into(),
        });
    }

    fn good(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| self.values.good(key))
    }

    /// Of two keys that do not go together, the one that somebody set: that one has a place to look at.
    fn given<'k>(&self, one: &'k str, two: &'k str) -> &'k str {
        if self.values.origin(one) == Origin::Default { two } else { one }
    }

    fn base_url(&mut self) {
        let url = self.values.set_text("upstream.base_url").map(str::to_owned);
        match url {
            None if self.good(&["upstream.base_url"]) => self.wrong(
                "upstream.base_url",
                "the address of the GlobalSIM API is not set",
                "set it, or SIMCAST__UPSTREAM__BASE_URL, to https://api.wayscloud.services/v1/globalsim; \"simcast demo\" needs none",
            ),
            Some(url) if url.starts_with("http://") && !is_loopback_url(&url) => self.warnings.push(format!(
                "upstream.base_url is plain HTTP to another machine: the API key can be read on the way ({url})"
            )),
            _ => {}
        }
    }

    fn key(&mut self) -> Option<KeySource> {
        let (inline_key, file_key) = ("upstream.api_key", "upstream.api_key_file");
        if !self.good(&[inline_key, file_key]) {
            return None;
        }
        let inline = self.values.set_text(inline_key).map(Secret::new);
        let file = self.values.set_text(file_key).map(|path| KeySource::File(PathBuf::from(path)));
        let (key, source) = match (inline, file) {
            (Some(_), Some(_)) => {
                self.wrong(inline_key, "api_key and api_key_file are both set", "leave one of them out");
                return None;
            }
            (None, None) => {
                let cure = "set upstream.api_key_file to a file that holds it, or SIMCAST__UPSTREAM__API_KEY";
                self.wrong(inline_key, "no API key is set", cure);
                return None;
            }
            (Some(secret), None) => (inline_key, secret.map(KeySource::Inline)),
            (None, Some(file)) => (file_key, file.load().map(|_| file)),
        };
        // A key that can't be read now would fail at the first request, after everything else has started.
        match source {
            Ok(source) => Some(source),
            Err(error) => {
                self.wrong(key, error.to_string(), "give the key alone, in a file that this user may read");
                None
            }
        }
    }

    fn budget(&mut self) {
        let (own, all) = ("upstream.requests_per_minute", "upstream.limit_per_minute");
        if !self.good(&[own, all]) {
            return;
        }
        let (own_n, all_n) = (self.values.number(own), self.values.number(all));
        if own_n > all_n {
            self.wrong(
                self.given(own, all),
                format!("requests_per_minute, {own_n}, is more than limit_per_minute, {all_n}"),
                format!("set {own} to {all_n} or less"),
            );
        }
        if all_n > 500 {
            self.warnings.push(format!(
                "upstream.limit_per_minute = {all_n} is more than the 500 that the API documents; be sure that your contract says so"
            ));
        }
    }

    fn retention(&mut self) {
        let kept = if self.is_nats() { "bus.nats.retention_days" } else { "bus.embedded.retention_days" };
        let read = "upstream.backfill_days";
        let (kept_n, read_n) = (self.values.number(kept), self.values.number(read));
        if self.good(&[kept, read]) && kept_n < read_n {
            self.wrong(
                self.given(kept, read),
                format!("{kept_n} days are kept but {read_n} are read at the first start"),
                format!("set {kept} to {read_n} or more, or lower {read}"),
            );
        }
    }

    fn is_nats(&self) -> bool {
        self.values.set_text("bus.kind") == Some("nats")
    }

    fn nats(&mut self) {
        if !self.is_nats() {
            if self.values.origin("bus.nats.urls") != Origin::Default && self.good(&["bus.kind"]) {
                self.warnings
                    .push("bus.nats.urls is set, but bus.kind is \"embedded\": NATS is not used".to_owned());
            }
            return;
        }
        let urls = self.values.list("bus.nats.urls");
        if urls.is_empty() && self.good(&["bus.nats.urls"]) {
            self.wrong(
                "bus.nats.urls",
                "no NATS server is given",
                "set it, or SIMCAST__BUS__NATS__URLS, to nats://host:4222",
            );
        }
        let open =
            |url: &&String| url.starts_with("nats://") && !is_loopback_url(&url.replacen("nats", "http", 1));
        if self.values.set_text("bus.nats.tls_ca").is_none()
            && let Some(url) = urls.iter().find(open)
        {
            self.warnings.push(format!(
                "bus.nats.urls: {} is another machine: unless that server demands TLS, events and credentials can be read on the way; tls:// makes sure",
                without_password(url)
            ));
        }
        let (creds, nkey) = ("bus.nats.credentials_file", "bus.nats.nkey_file");
        if self.values.set_text(creds).is_some() && self.values.set_text(nkey).is_some() {
            self.wrong(nkey, "credentials_file and nkey_file are both set", "leave one of them out");
        }
        let (cert, key) = ("bus.nats.tls_cert", "bus.nats.tls_key");
        for (one, other) in [(cert, key), (key, cert)] {
            if self.values.set_text(one).is_some() && self.values.set_text(other).is_none() {
                self.wrong(one, format!("it is of no use without {other}"), format!("set {other} too"));
            }
        }
        for key in [creds, nkey, "bus.nats.tls_ca", cert, key] {
            if let Some(path) = self.values.set_text(key)
                && let Err(error) = std::fs::File::open(path)
            {
                self.wrong(
                    key,
                    format!("{path} can't be read: {error}"),
                    "give a file that this user may read",
                );
            }
        }
        let has_login = |url: &String| url.rsplit_once('@').is_some();
        if let Some(file) = [creds, nkey].into_iter().find(|key| self.values.set_text(key).is_some())
            && urls.iter().any(has_login)
        {
            self.warnings.push(format!("bus.nats.urls holds a login, but {file} is used instead"));
        }
        self.cache_path();
        let replicas = self.values.number("bus.nats.replicas");
        if replicas.is_multiple_of(2) {
            self.wrong(
                "bus.nats.replicas",
                format!("of {replicas} servers no more may fail than of {}", replicas - 1),
                "give 1, 3 or 5",
            );
        }
    }

    /// The directory is made at the start; whether it can be shows in what there is of its path.
    fn cache_path(&mut self) {
        let key = "bus.nats.cache_path";
        let Some(path) = self.values.set_text(key).filter(|_| self.good(&[key])).map(PathBuf::from) else {
            return;
        };
        // A relative path ends at the empty one, which is the working directory.
        let there = path.ancestors().map(|one| if one.as_os_str().is_empty() { Path::new(".") } else { one });
        let Some(there) = there.into_iter().find(|one| one.exists()) else { return };
        let writable = if there.is_dir() {
            rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK).map_err(std::io::Error::from)
        } else {
            Err(std::io::ErrorKind::NotADirectory.into())
        };
        if let Err(error) = writable {
            self.wrong(
                key,
                format!("{} can't be written: {}: {error}", path.display(), there.display()),
                "give this user the directory, or name another",
            );
        }
    }

    fn listeners(&mut self) {
        let keys = ["http.listen", "grpc.listen", "admin.listen"];
        for (index, key) in keys.iter().enumerate() {
            let address = self.values.address(key);
            let twin = keys.iter().take(index).find(|other| {
                address.port() != 0 && self.values.address(other) == address && self.good(&[key, other])
            });
            if let Some(twin) = twin {
                self.wrong(key, format!("{address} is the address of {twin} too"), "give another port");
            }
        }
    }

    /// Without tokens everybody who reaches a listener may do everything.
    fn exposure(&mut self, tokens: &[TokenConfig]) {
        let token_mistake = self.mistakes.iter().any(|mistake| mistake.key.starts_with("auth.tokens"));
        if !tokens.is_empty() || token_mistake {
            return;
        }
        for key in ["http.listen", "grpc.listen", "admin.listen"] {
            let address = self.values.address(key);
            if self.good(&[key]) && !address.ip().is_loopback() {
                self.wrong(
                    key,
                    format!("{address} can be reached from other machines, and nobody needs a token"),
                    "run \"simcast token new\" and paste what it prints, or listen on 127.0.0.1",
                );
            }
        }
    }

    /// What the webhooks need, read now: a key that is found to be wrong at the first webhook is found too late.
    fn webhooks(&mut self) {
        let (inline, file) = ("webhooks.secret_key", "webhooks.secret_key_file");
        let cure = "make one with: openssl rand -base64 32";
        match (self.values.set_text(inline), self.values.set_text(file)) {
            (Some(_), Some(_)) => {
                self.wrong(inline, "secret_key and secret_key_file are both set", "leave one of them out");
            }
            (Some(text), None) => {
                if let Err(error) = Sealer::parse(text) {
                    self.wrong(inline, error.to_string(), cure);
                }
            }
            (None, Some(path)) => {
                if let Err(error) = Sealer::from_file(Path::new(path)) {
                    self.wrong(file, error.to_string(), cure);
                }
            }
            (None, None) => {}
        }
        if let Some(text) = self.values.set_text("webhooks.proxy")
            && let Err(problem) = Proxy::parse(text)
        {
            self.wrong(
                "webhooks.proxy",
                problem,
                "give http://host:port, with user:password@ where it wants one",
            );
        }
        if let Some(path) = self.values.set_text("webhooks.ca_file")
            && let Err(problem) = outbound::read_roots(Path::new(path))
        {
            self.wrong(
                "webhooks.ca_file",
                problem,
                "give a file of PEM certificates that this user may read",
            );
        }
    }

    /// The SIMs of both keys, in order and without repeats.
    fn sims(&mut self) -> Vec<Iccid> {
        let inline = self.values.list("sims.iccids");
        let mut iccids: Vec<_> = inline.iter().filter_map(|text| Iccid::parse(text).ok()).collect();
        if let Some(path) = self.values.set_text("sims.file") {
            match sims::read(Path::new(path)) {
                Ok(listed) => iccids.extend(listed),
                Err(problems) => problems.into_iter().for_each(|problem| {
                    self.wrong(
                        "sims.file",
                        problem,
                        "give one ICCID a line, in a file that this user may read",
                    );
                }),
            }
        }
        iccids.sort_unstable();
        iccids.dedup();
        iccids
    }

    fn pseudonyms(&mut self) {
        let key = "auth.pseudonym_key";
        if self.values.set_text(key).is_some_and(|text| text.len() < 32) {
            self.wrong(
                key,
                "it is shorter than 32 characters, so that pseudonyms could be guessed",
                "give 32 or more random characters",
            );
        }
    }
}

fn is_loopback_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
