//! Streams that outlive an upgrade: a tunnel as a WebSocket has it, and a gRPC-like exchange over HTTP/2.

use std::{io, net::TcpStream};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use tokio::runtime::{Builder, Runtime};

use crate::support::{Peer, SVC4, Speak, World};

const TUNNELS: u16 = 9001;
const GRPC: u16 = 9002;

/// Echoes what comes through tunnels and in streams.
pub(crate) fn echo(world: &World) -> [Peer; 2] {
    let tunnels = world.peer(TUNNELS, |mut stream| {
        stream.hear_until("\r\n\r\n")?;
        stream.say(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n",
        )?;
        loop {
            let byte = stream.hear(1)?;
            stream.say(byte)?;
        }
    });
    let grpc = world.peer(GRPC, |stream| {
        stream.set_read_timeout(None)?;
        runtime().block_on(serve(stream)).map_err(io::Error::other)
    });
    [tunnels, grpc]
}

pub(crate) struct Tunnel(TcpStream);

impl Tunnel {
    pub(crate) fn open(world: &World) -> Self {
        let mut stream = world.app.connect((SVC4, TUNNELS));
        stream
            .say("GET /echo HTTP/1.1\r\nHost: svc\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
            .unwrap();
        let head = stream.hear_until("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self(stream)
    }

    #[track_caller]
    pub(crate) fn echoes(&mut self) {
        self.try_echo().expect("the tunnel is alive");
    }

    pub(crate) fn try_echo(&mut self) -> io::Result<()> {
        self.0.say("x")?;
        match &self.0.hear(1)?[..] {
            b"x" => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

pub(crate) struct Grpc {
    runtime: Runtime,
    upload: SendStream<Bytes>,
    download: RecvStream,
}

impl Grpc {
    pub(crate) fn open(world: &World) -> Self {
        let stream = world.app.connect((SVC4, GRPC));
        let runtime = runtime();
        let (upload, download) = runtime.block_on(async {
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let request = http::Request::post("http://svc/echo")
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            let (response, upload) = client.send_request(request, false).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            (upload, response.into_body())
        });
        Self {
            runtime,
            upload,
            download,
        }
    }

    #[track_caller]
    pub(crate) fn echoes(&mut self) {
        self.upload.send_data("x".into(), false).unwrap();
        let data = self.runtime.block_on(async {
            let data = self
                .download
                .data()
                .await
                .expect("the stream is alive")
                .unwrap();
            self.download
                .flow_control()
                .release_capacity(data.len())
                .unwrap();
            data
        });
        assert_eq!(data, "x");
    }
}

async fn serve(stream: TcpStream) -> Result<(), h2::Error> {
    stream
        .set_nonblocking(true)
        .map_err(|_| h2::Reason::INTERNAL_ERROR)?;
    let stream = tokio::net::TcpStream::from_std(stream).map_err(|_| h2::Reason::INTERNAL_ERROR)?;
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        let mut upload = request.into_body();
        let mut download = respond.send_response(http::Response::new(()), false)?;
        tokio::spawn(async move {
            while let Some(Ok(data)) = upload.data().await {
                let _ = upload.flow_control().release_capacity(data.len());
                let _ = download.send_data(data, false);
            }
        });
    }
    Ok(())
}

/// With a thread of its own, so that a connection goes on while nobody asks anything of it.
fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}
