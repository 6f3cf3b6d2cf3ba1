//! A real web server on the service's side: HTTP/1 on 80, TLS on 443, HTTP/2 in the clear on 8080.

use std::{collections::HashSet, path::PathBuf, process::Command};

use super::{Process, SVC4, SVC6, World};

#[derive(Debug)]
pub struct Nginx {
    process: Process,
    www: PathBuf,
    access_log: PathBuf,
}

impl Nginx {
    pub(super) fn start(world: &World) -> Self {
        let dir = world.dir();
        let www = dir.join("www");
        std::fs::create_dir(&www).expect("the test's directory is writable");
        std::fs::write(www.join("hello"), "hello\n").expect("the test's directory is writable");
        world.svc.sh(&format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
             -subj /CN=svc.test -addext 'subjectAltName=DNS:svc.test,IP:{SVC4},IP:{SVC6}' \
             -keyout {dir}/svc.key -out {dir}/svc.crt 2>/dev/null",
            dir = dir.display()
        ));
        let config = world.write("nginx.conf", configuration(world));
        let mut command = Command::new("nginx");
        command
            .arg("-p")
            .arg(dir)
            .arg("-e")
            .arg("stderr")
            .arg("-c")
            .arg(config);
        let mut process = Process::start(&world.svc, dir, "nginx", &command);
        process.until("listens", || {
            [80, 443, 8080]
                .iter()
                .all(|port| world.svc.listeners_on(*port) == 2)
        });
        Self {
            process,
            www,
            access_log: dir.join("access.log"),
        }
    }

    /// Where its files are.
    pub fn www(&self) -> &PathBuf {
        &self.www
    }

    /// The requests that it has answered, a line each: `<protocol> <request line> <status>`.
    pub fn requests(&self) -> Vec<String> {
        self.lines()
            .into_iter()
            .map(|(_, request)| request)
            .collect()
    }

    /// How many connections carried the requests that it has answered.
    pub fn connections(&self) -> usize {
        self.lines()
            .into_iter()
            .map(|(serial, _)| serial)
            .collect::<HashSet<_>>()
            .len()
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn lines(&self) -> Vec<(String, String)> {
        let log = std::fs::read_to_string(&self.access_log).unwrap_or_default();
        log.lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(serial, request)| (serial.into(), request.into()))
            .collect()
    }
}

fn configuration(world: &World) -> String {
    let dir = world.dir().display();
    // One process, in the foreground: its guard ends all of it.
    format!(
        r#"
user root root;
daemon off;
master_process off;
pid {dir}/nginx.pid;
worker_rlimit_nofile 20000;
events {{ worker_connections 16000; }}
http {{
    log_format seen '$connection $server_protocol $request $status';
    access_log {dir}/access.log seen;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    default_type text/plain;
    sendfile on;
    client_max_body_size 0;
    keepalive_requests 1000000;
    server {{
        listen {SVC4}:80 backlog=4096;
        listen [{SVC6}]:80 backlog=4096;
        # On whatever address.
        listen 8099 backlog=4096;
        listen {SVC4}:443 ssl;
        listen [{SVC6}]:443 ssl;
        listen {SVC4}:8080 http2 backlog=4096;
        listen [{SVC6}]:8080 http2 backlog=4096;
        ssl_certificate {dir}/svc.crt;
        ssl_certificate_key {dir}/svc.key;
        root {dir}/www;
        location /put/ {{ dav_methods PUT; create_full_put_path on; }}
        location = /empty {{ return 204; }}
        location = /echo-headers {{ return 200 "$http_x_one|$http_connection|$http_host\n"; }}
    }}
}}
"#
    )
}
