//! The connection to the collector, kept from one export to the next.

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, header,
    uri::{PathAndQuery, Scheme, Uri},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn;
use hyper_util::rt::TokioIo;
use outrigger_config::{OtlpProtocol, Tracing};

use super::answer::{self, Answer};
use crate::{
    grpc,
    shared::Shared,
    upstream::{self, Upstream},
};

/// Bytes of an answer: a partial success has a number and a line.
const MAX_ANSWER: usize = 64 * 1024;

const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const HTTP_PATH: &str = "/v1/traces";

pub(super) struct Connection<'a> {
    shared: &'a Arc<Shared>,
    settings: &'a Tracing,
    sender: Option<Sender>,
}

enum Sender {
    Http1(conn::http1::SendRequest<Full<Bytes>>),
    Http2(grpc::Sender),
}

impl<'a> Connection<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, settings: &'a Tracing) -> Self {
        Self {
            shared,
            settings,
            sender: None,
        }
    }

    /// Sends one export; the caller bounds the time, and closes when it is up.
    pub(super) async fn send(&mut self, message: Bytes) -> Answer {
        match self.exchange(message).await {
            Ok(answer) => answer,
            Err(error) => {
                self.close();
                Answer::retry(error.to_string())
            }
        }
    }

    pub(super) fn close(&mut self) {
        self.sender = None;
    }

    async fn exchange(&mut self, message: Bytes) -> Result<Answer, grpc::Error> {
        let request = self.request(message)?;
        let mut sender = self.sender().await?;
        let (parts, body) = match &mut sender {
            Sender::Http1(sender) => sender.send_request(request).await?,
            Sender::Http2(sender) => sender.send_request(request).await?,
        }
        .into_parts();
        let is_grpc = matches!(sender, Sender::Http2(_));
        let body = Limited::new(body, MAX_ANSWER).collect().await?;
        // Read to its end: fit for another export.
        self.sender = Some(sender);
        let trailers = body.trailers().cloned();
        let body = body.to_bytes();
        Ok(if is_grpc {
            answer::of_grpc(parts.status, &parts.headers, trailers.as_ref(), &body)
        } else {
            answer::of_http(parts.status, &parts.headers, &body)
        })
    }

    fn request(&self, message: Bytes) -> Result<Request<Full<Bytes>>, grpc::Error> {
        let Tracing {
            endpoint, protocol, ..
        } = self.settings;
        let authority = endpoint.authority(protocol.port());
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = http::Method::POST;
        let headers = request.headers_mut();
        for (name, value) in &self.settings.headers {
            let mut value = HeaderValue::try_from(value.reveal())?;
            value.set_sensitive(true);
            headers.insert(HeaderName::try_from(name)?, value);
        }
        headers
            .entry(header::USER_AGENT)
            .or_insert(HeaderValue::from_static(concat!(
                "outrigger/",
                env!("CARGO_PKG_VERSION")
            )));
        *request.uri_mut() = match protocol {
            OtlpProtocol::Grpc => {
                headers.insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("application/grpc"),
                );
                headers.insert(header::TE, HeaderValue::from_static("trailers"));
                Uri::builder()
                    .scheme(Scheme::HTTP)
                    .authority(authority)
                    .path_and_query(GRPC_PATH)
                    .build()?
            }
            OtlpProtocol::HttpProtobuf => {
                headers.insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("application/x-protobuf"),
                );
                headers.insert(header::HOST, HeaderValue::try_from(authority)?);
                PathAndQuery::try_from(format!("{}{HTTP_PATH}", endpoint.path))?.into()
            }
        };
        Ok(request)
    }

    /// The one of the export before, if the collector has kept it.
    async fn sender(&mut self) -> Result<Sender, grpc::Error> {
        let mut kept = self.sender.take();
        let is_ready = match &mut kept {
            Some(Sender::Http1(sender)) => sender.ready().await.is_ok(),
            Some(Sender::Http2(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        match kept.filter(|_| is_ready) {
            Some(sender) => Ok(sender),
            None => self.connect().await,
        }
    }

    async fn connect(&self) -> Result<Sender, grpc::Error> {
        let upstream = self.dial().await?;
        Ok(match self.settings.protocol {
            OtlpProtocol::Grpc => Sender::Http2(grpc::handshake(upstream).await?),
            OtlpProtocol::HttpProtobuf => {
                let stream = TokioIo::new(upstream);
                let (sender, connection) = conn::http1::handshake(stream).await?;
                tokio::task::spawn_local(connection);
                Sender::Http1(sender)
            }
        })
    }

    /// As one of our own connections, which nothing captures.
    async fn dial(&self) -> Result<Upstream, grpc::Error> {
        let Tracing {
            endpoint, protocol, ..
        } = self.settings;
        let port = endpoint.port.unwrap_or(protocol.port());
        let mut failure = "its name has no address".to_owned();
        // Looked up each time: a collector that has moved is found where it is.
        for address in tokio::net::lookup_host((&*endpoint.host, port)).await? {
            match upstream::connect(self.shared, address).await {
                Ok(upstream) => return Ok(upstream),
                Err(error) => failure = format!("{address}: {}", error.label()),
            }
        }
        Err(failure.into())
    }
}
