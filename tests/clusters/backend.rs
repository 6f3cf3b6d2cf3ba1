//! Real servers that make up a cluster: one nginx an endpoint, each a process of its own, so that one
//! of them can be stopped, killed or told to answer otherwise.

use std::{fs, path::PathBuf, process::Command};

use crate::support::{Process, SVC4, World};

/// Where the application dials; nobody listens there.
pub(crate) const SERVICE: &str = "198.51.100.2:80";

/// How far above its port an endpoint speaks HTTP/2 in the clear.
pub(crate) const HTTP2: u16 = 100;

/// An endpoint, which answers every request with its name.
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    dir: PathBuf,
    process: Process,
}

impl Backend {
    /// HTTP/1 on `port`, and HTTP/2 [`HTTP2`] above.
    pub(crate) fn start(world: &World, name: &'static str, port: u16) -> Self {
        let dir = world.dir().join(name);
        fs::create_dir(&dir).expect("the test's directory is writable");
        let process = launch(world, &dir, name, port);
        let mut backend = Self {
            name,
            port,
            dir,
            process,
        };
        backend.serving(1);
        backend.listens(world);
        backend
    }

    pub(crate) fn address(&self) -> String {
        format!("{SVC4}:{}", self.port)
    }

    /// Requests it has answered, health checks aside.
    pub(crate) fn served(&self) -> usize {
        let is_check = |l: &&str| l.contains("/health") || l.contains("/grpc.health");
        self.log().lines().filter(|l| !is_check(l)).count()
    }

    /// What it has written down of its requests.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("access.log")).unwrap_or_default()
    }

    /// The serving status that its gRPC health service tells from now on: 1 is SERVING, 2 NOT_SERVING.
    pub(crate) fn serving(&self, status: u8) {
        let message = [0, 0, 0, 0, 2, 0x08, status];
        let (new, place) = (self.dir.join("serving.new"), self.dir.join("serving"));
        fs::write(&new, message).expect("the test's directory is writable");
        fs::rename(new, place).expect("the test's directory is writable");
    }

    /// From now on it answers with 503, to health checks too.
    pub(crate) fn fail(&self) {
        fs::write(self.dir.join("failing"), "").expect("the test's directory is writable");
    }

    pub(crate) fn recover(&self) {
        fs::remove_file(self.dir.join("failing")).expect("it was failing");
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn start_again(&mut self, world: &World) {
        self.process = launch(world, &self.dir, self.name, self.port);
        self.listens(world);
    }

    fn listens(&mut self, world: &World) {
        let port = self.port;
        self.process
            .until("listens", || world.svc.listeners_on(port + HTTP2) == 1);
    }
}

fn launch(world: &World, dir: &PathBuf, name: &str, port: u16) -> Process {
    let here = dir.display();
    let http2 = port + HTTP2;
    let config = format!(
        r#"
user root root;
daemon off;
master_process off;
pid {here}/nginx.pid;
worker_rlimit_nofile 20000;
events {{ worker_connections 8000; }}
http {{
    access_log {here}/access.log;
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/fastcgi;
    uwsgi_temp_path {here}/uwsgi;
    scgi_temp_path {here}/scgi;
    default_type text/plain;
    keepalive_requests 1000000;
    server {{
        listen {SVC4}:{port} backlog=4096;
        listen {SVC4}:{http2} http2 backlog=4096;
        # There is no such file; the error's page is one.
        location = /grpc.health.v1.Health/Check {{
            error_page 404 =200 /serving;
            root {here};
        }}
        location = /serving {{
            root {here};
            default_type application/grpc;
            add_header grpc-status 0;
        }}
        location / {{
            if (-f {here}/failing) {{ return 503 "{name} fails\n"; }}
            return 200 "{name}\n";
        }}
    }}
}}
"#
    );
    let path = dir.join("nginx.conf");
    fs::write(&path, config).expect("the test's directory is writable");
    let mut command = Command::new("nginx");
    command
        .args(["-e", "stderr", "-p"])
        .arg(dir)
        .arg("-c")
        .arg(path);
    Process::start(&world.svc, world.dir(), name, &command)
}

/// `a`, `b` and `c`.
pub(crate) fn three(world: &World) -> [Backend; 3] {
    [("a", 9001), ("b", 9002), ("c", 9003)].map(|(name, port)| Backend::start(world, name, port))
}

/// A configuration in which the service is a cluster of `backends`, with more keys of that cluster.
pub(crate) fn clustered(backends: &[Backend], more: &str) -> String {
    let endpoints: Vec<_> = backends
        .iter()
        .map(|b| format!("{{ address: '{}' }}", b.address()))
        .collect();
    format!(
        "routes: [{{ match: {{ destination: {SVC4}, port: 80 }}, cluster: service }}]\n\
         clusters:\n- name: service\n  endpoints: [{}]\n  {more}\n",
        endpoints.join(", ")
    )
}
