//! A site of a few real servers that tell what they were asked, and a client that asks.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;

use crate::support::{Process, Proxy, SOON, SVC4, Speak, World, wait_until};

/// How far above its port a server speaks HTTP/2, and where it serves itself the bodies that it logs.
const HTTP2: u16 = 100;
const WITHIN: u16 = 200;

/// Where the application dials; nobody listens there.
pub(crate) const SERVICE: &str = "http://198.51.100.2:80";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

pub(crate) struct Site {
    pub(crate) version: Version,
    pub(crate) world: World,
    pub(crate) servers: Vec<Server>,
}

/// Answers with its name and what it was asked, and logs the same with the body.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    port: u16,
    log: PathBuf,
    pub(crate) process: Process,
}

/// Runs `test` with each version of HTTP, and servers of these names.
pub(crate) fn each_version(names: &[&'static str], test: impl Fn(&mut Site)) {
    for version in [Version::Http1, Version::Http2] {
        println!("{version:?}");
        let world = World::new();
        let servers = names.iter().zip(9001..);
        let servers = servers
            .map(|(name, port)| Server::start(&world, name, port))
            .collect();
        test(&mut Site {
            version,
            world,
            servers,
        });
    }
}

impl Site {
    /// A capturing proxy with these `routes`, a list of YAML, and a cluster for each server.
    pub(crate) fn proxy(&self, routes: &str) -> Proxy<'_> {
        let above = match self.version {
            Version::Http1 => 0,
            Version::Http2 => HTTP2,
        };
        let cluster = |server: &Server| {
            let (name, port) = (server.name, server.port + above);
            format!(
                "- {{ name: {name}, endpoints: [{{ address: '{SVC4}:{port}', hostname: {name}.example }}] }}\n"
            )
        };
        let clusters: String = self.servers.iter().map(cluster).collect();
        let proxy = self.world.serve(&format!(
            "workers: 1\nroutes:\n{routes}\nclusters:\n{clusters}"
        ));
        self.world.capture(&proxy);
        proxy
    }

    /// What curl prints, with these arguments beside the version's.
    #[track_caller]
    pub(crate) fn curl(&self, arguments: &str) -> String {
        let version = match self.version {
            Version::Http1 => "--http1.1",
            Version::Http2 => "--http2-prior-knowledge",
        };
        self.world
            .app
            .sh(&format!("curl -sS {version} {arguments}"))
    }

    /// What a `GET` of `path` from `host` is answered with.
    #[track_caller]
    pub(crate) fn get(&self, host: &str, path: &str) -> String {
        self.curl(&format!("--path-as-is -H 'Host: {host}' '{SERVICE}{path}'"))
    }

    /// The status and body of each answer to a `GET` by host and path, over one connection to `to`.
    /// (curl 7.88 cannot use an HTTP/2 connection twice where it was not asked for by an upgrade.)
    #[track_caller]
    pub(crate) fn over_one_connection(
        &self,
        to: impl Into<SocketAddr>,
        asked: &[(&str, String)],
    ) -> Vec<(u16, String)> {
        let stream = self.world.app.connect(to);
        match self.version {
            Version::Http1 => over_http1(stream, asked),
            Version::Http2 => over_http2(stream, asked),
        }
    }

    /// The head of what is answered, in lower case, status line first.
    #[track_caller]
    pub(crate) fn head(&self, arguments: &str) -> String {
        self.curl(&format!("-o /dev/null -D - {arguments}"))
            .to_ascii_lowercase()
    }
}

fn over_http1(mut stream: TcpStream, asked: &[(&str, String)]) -> Vec<(u16, String)> {
    let answer = |(host, path): &(&str, String)| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.say(request).expect("the connection stays");
        let (head, body) = stream.hear_response().expect("an answer");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no status: {head}")), body)
    };
    asked.iter().map(answer).collect()
}

fn over_http2(stream: TcpStream, asked: &[(&str, String)]) -> Vec<(u16, String)> {
    in_http2(stream, async |mut client| {
        let mut answers = Vec::new();
        for (host, path) in asked {
            let request = http::Request::get(format!("http://{host}{path}"));
            let request = request.body(()).expect("a request");
            client = client.ready().await.expect("the connection stays");
            let (response, _) = client.send_request(request, true).expect("a stream");
            let response = response.await.expect("an answer");
            let status = response.status().as_u16();
            let mut body = response.into_body();
            let mut text = Vec::new();
            while let Some(chunk) = body.data().await {
                let chunk = chunk.expect("the whole body");
                text.extend_from_slice(&chunk);
                let _ = body.flow_control().release_capacity(chunk.len());
            }
            answers.push((status, String::from_utf8_lossy(&text).into_owned()));
        }
        answers
    })
}

/// What comes of talking HTTP/2 over `stream`.
#[track_caller]
pub(crate) fn in_http2<T>(stream: TcpStream, talk: impl AsyncFnOnce(SendRequest<Bytes>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let talking = async {
        stream.set_nonblocking(true).expect("a socket");
        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        talk(client).await
    };
    let limited = async { tokio::time::timeout(Duration::from_secs(60), talking).await };
    runtime
        .expect("a runtime")
        .block_on(limited)
        .expect("answers in time")
}

impl Server {
    fn start(world: &World, name: &'static str, port: u16) -> Self {
        let dir = world.dir().join(name);
        fs::create_dir(&dir).expect("the test's directory is writable");
        let here = dir.display();
        let (http2, within) = (port + HTTP2, port + WITHIN);
        let config = format!(
            r#"
user root root;
daemon off;
master_process off;
pid {here}/nginx.pid;
events {{ worker_connections 1000; }}
http {{
    log_format asked '$request_method $http_host $request_uri [$http_x_one] $request_body';
    client_body_buffer_size 2m;
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/fastcgi;
    uwsgi_temp_path {here}/uwsgi;
    scgi_temp_path {here}/scgi;
    default_type text/plain;
    merge_slashes off;
    server {{
        listen {SVC4}:{port};
        listen {SVC4}:{http2} http2;
        access_log {here}/access.log asked;
        add_header x-server {name};
        add_header x-many 1;
        add_header x-many 2;
        location / {{ return 200 "{name} $request_method $http_host $request_uri [$http_x_one] [$http_x_two]\n"; }}
        location /body {{ proxy_pass http://127.0.0.1:{within}; }}
    }}
    server {{
        listen 127.0.0.1:{within};
        access_log off;
        location / {{ return 200 "{name} has it\n"; }}
    }}
}}
"#
        );
        let path = dir.join("nginx.conf");
        fs::write(&path, config).expect("the test's directory is writable");
        let mut command = Command::new("nginx");
        command
            .args(["-e", "stderr", "-p"])
            .arg(&dir)
            .arg("-c")
            .arg(path);
        let mut process = Process::start(&world.svc, world.dir(), name, &command);
        process.until("listens", || world.svc.listeners_on(http2) == 1);
        Self {
            name,
            port,
            log: dir.join("access.log"),
            process,
        }
    }

    /// What it was asked, a line each: method, host, path, `[x-one]`, body.
    pub(crate) fn asked(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        // The last one may not be all there yet.
        let whole = log
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'));
        whole
            .map(|line| line.trim_end_matches(" -").to_owned())
            .collect()
    }

    /// The same once there are `count` lines: a line is written after the client has its answer.
    #[track_caller]
    pub(crate) fn asked_times(&self, count: usize) -> Vec<String> {
        wait_until(SOON, "what was asked is logged", || {
            self.asked().len() >= count
        });
        let asked = self.asked();
        assert_eq!(asked.len(), count, "{asked:.200?}");
        asked
    }
}
