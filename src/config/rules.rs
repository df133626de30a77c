//! Rules between keys, and what only the machine can say: files that must be readable.

use std::{fs, io::Read as _, net::IpAddr};

use super::{Mistake, Origin, build::Values};
use crate::auth::TokenConfig;

const KEY_BYTES_MAX: usize = 4096;

/// Checks what no single value shows; gives warnings.
pub fn check(values: &Values, tokens: &[TokenConfig], mistakes: &mut Vec<Mistake>) -> Vec<String> {
    let mut rules = Rules { values, mistakes, warnings: Vec::new() };
    rules.upstream();
    rules.budget();
    rules.retention();
    rules.listeners();
    rules.exposure(tokens);
    rules.pseudonyms();
    rules.warnings
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

    fn upstream(&mut self) {
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
        if !self.good(&["upstream.api_key", "upstream.api_key_file"]) {
            return;
        }
        let inline = self.values.set_text("upstream.api_key").map(str::to_owned);
        let file = self.values.set_text("upstream.api_key_file").map(str::to_owned);
        match (inline, file) {
            (Some(_), Some(_)) => self.wrong(
                "upstream.api_key",
                "api_key and api_key_file are both set",
                "leave one of them out",
            ),
            (None, None) => self.wrong(
                "upstream.api_key",
                "no API key is set",
                "set upstream.api_key_file to a file that holds it, or SIMCAST__UPSTREAM__API_KEY",
            ),
            (Some(key), None) => self.key("upstream.api_key", &key),
            (None, Some(path)) => match read_key(&path) {
                Ok(key) => self.key("upstream.api_key_file", &key),
                Err(error) => self.wrong(
                    "upstream.api_key_file",
                    format!("{path} can't be read: {error}"),
                    "give a file that this user may read, whose only line is the key",
                ),
            },
        }
    }

    fn key(&mut self, path: &str, key: &str) {
        let key = key.trim();
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|b| b.is_ascii_graphic()) {
            self.wrong(
                path,
                "the key is empty or holds more than one line of visible ASCII",
                "give the key alone",
            );
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
        let (kept, read) = ("bus.embedded.retention_days", "upstream.backfill_days");
        let (kept_n, read_n) = (self.values.number(kept), self.values.number(read));
        if self.good(&[kept, read]) && kept_n < read_n {
            self.wrong(
                self.given(kept, read),
                format!("{kept_n} days are kept but {read_n} are read at the first start"),
                format!("set {kept} to {read_n} or more, or lower {read}"),
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

fn read_key(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    // One byte more than a key may have, so that a wrong file is noticed without being read whole.
    fs::File::open(path)?.take(KEY_BYTES_MAX as u64 + 2).read_to_string(&mut text)?;
    Ok(text)
}
