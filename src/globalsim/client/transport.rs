//! What carries requests: HTTP, or in tests a pipe to a simulator in the same runtime.

use reqwest::{Request, Response};

use super::{Config, answer};
use crate::globalsim::error::Error;

/// The way to upstream.
#[derive(Debug)]
pub(super) enum Transport {
    /// Over the network.
    Http(reqwest::Client),
    /// Over a pipe, a new one for each request.
    #[cfg(test)]
    Memory(crate::globalsim::simulator::Dialer),
}

impl Transport {
    /// Sends one request and waits for the head of its answer.
    ///
    /// # Errors
    /// [`Error::Timeout`] or [`Error::Transport`].
    pub async fn send(&self, request: Request, config: &Config) -> Result<Response, Error> {
        match self {
            Self::Http(http) => http.execute(request).await.map_err(|error| answer::transport(error, config)),
            #[cfg(test)]
            Self::Memory(dialer) => {
                memory(dialer, request).await.map_err(|e| Error::Transport(e.to_string()))
            }
        }
    }
}

#[cfg(test)]
async fn memory(dialer: &crate::globalsim::simulator::Dialer, request: Request) -> hyper::Result<Response> {
    let stream = hyper_util::rt::TokioIo::new(dialer.dial());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    let (path, query) = (request.url().path(), request.url().query().unwrap_or_default());
    let mut head = http::Request::get(format!("{path}?{query}")).header(http::header::HOST, "simulator");
    if let Some(headers) = head.headers_mut() {
        headers.extend(request.headers().clone());
    }
    let request = head.body(http_body_util::Empty::<bytes::Bytes>::new()).expect("a URL has a path");
    let response = sender.send_request(request).await?;
    Ok(Response::from(response.map(reqwest::Body::wrap)))
}
