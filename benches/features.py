#!/usr/bin/env python3
"""What each feature costs a request: CPU time of the proxy, as a ratio to plain pass-through.

Runs as root; needs ip, nft, nginx and wrk (Debian: iproute2 nftables nginx-light wrk):

    benches/features.py --proxyctl target/release/proxyctl [--rounds 6] [--seconds 5] [--json]

Every variant runs at once, each a proxy with one worker on the same CPU, under the same load of HTTP/1
requests of 1 line answered with 3 bytes. Whatever else the machine does, and whatever its clock, thus meets
all of them alike: absolute times of a shared machine vary by half from minute to minute, these ratios by
a few percent. `again` is a second plain proxy, which tells how far they can be trusted.
"""
import argparse, json, os, pathlib, random, re, shutil, statistics, subprocess, sys, tempfile, time

CLUSTER = """
clusters:
  - name: up
    endpoints: [{address: "198.51.100.1:80"}, {address: "198.51.100.2:80"}, {address: "198.51.100.3:80"}]
    outlier_detection: {}
    endpoint_breaker: {}
"""
TRACING = 'tracing: { endpoint: "http://127.0.0.1:4317", service_name: bench, sampling: %s }'
# What the project promises at most, where it promises anything.
VARIANTS = {
    "plain": ("", None),
    "again": ("", None),
    "cluster of 3, breaker, outlier detection": (CLUSTER + "routes: [{match: {}, cluster: up}]", 1.10),
    "the same, with route, timeout, retries, limiter": (CLUSTER + """
routes:
  - match: {path: {prefix: /}}
    cluster: up
    timeout: 15s
    retry: {on: [5xx, connect-failure]}
    rate_limits: [{name: all, token_bucket: {max_tokens: 1000000, tokens_per_fill: 1000000, fill_interval: 1s}}]
""", 1.15),
    "access log (JSON)": ("access_log: { to: /dev/null }", 1.10),
    "tracing, 1 % sampled": (TRACING % 0.01, 1.05),
    "tracing, all sampled": (TRACING % 1.0, 1.5),
}
PROXY_UID = "1337"
NAMESPACES = APP, SVC = "og-features-app", "og-features-svc"
CONNECTIONS = 16


def sh(command, check=True):
    done = subprocess.run(command, shell=True, text=True, capture_output=True, timeout=60)
    if check and done.returncode:
        sys.exit(f"{command}\n{done.stdout}{done.stderr}")


def address_of(slot):
    return f"198.51.100.{10 + slot}"


def port_of(slot):
    return 15001 + 10 * slot


def set_up(work):
    tear_down()
    addresses = ["198.51.100.1", "198.51.100.2", "198.51.100.3", *map(address_of, range(len(VARIANTS)))]
    sh(f"ip netns add {APP} && ip netns add {SVC} && ip link add ogfa netns {APP} type veth peer name ogfs netns {SVC}")
    sh(f"ip -n {APP} addr add 198.51.100.254/24 dev ogfa; ip -n {APP} link set ogfa up; ip -n {APP} link set lo up")
    sh(f"ip -n {SVC} link set ogfs up; ip -n {SVC} link set lo up")
    sh("; ".join(f"ip -n {SVC} addr add {address}/24 dev ogfs" for address in addresses))
    (work / "nginx.conf").write_text(f"""
        worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.err;
        events {{ worker_connections 10000; }}
        http {{
            access_log off; keepalive_requests 1000000000; keepalive_timeout 3600;
            server {{ listen 80; location / {{ return 200 "ok\\n"; }} }}
        }}""")
    command = ["ip", "netns", "exec", SVC, "taskset", "-c", "1", "nginx", "-c", work / "nginx.conf", "-g", "daemon off;"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def tear_down():
    for namespace in NAMESPACES:
        sh(f"ip netns del {namespace}", check=False)


def start(work, proxyctl, slot, settings):
    config = work / f"{slot}.yaml"
    config.write_text(f"listen: ['127.0.0.1:{port_of(slot)}']\nadmin: null\n{settings}\n")
    command = ["ip", "netns", "exec", APP, "setpriv", "--reuid", PROXY_UID, "--regid", PROXY_UID, "--clear-groups",
               "taskset", "-c", "0", proxyctl, "serve", "--workers", "1", "--config", config]
    with open(work / f"{slot}.log", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def await_listener(work, process, slot):
    wanted = f":{port_of(slot):04X} 00000000:0000 0A"
    for _ in range(200):
        if process.poll() is not None:
            sys.exit((work / f"{slot}.log").read_text())
        if wanted in pathlib.Path(f"/proc/{process.pid}/net/tcp").read_text():
            return
        time.sleep(0.05)
    sys.exit(f"no listener at port {port_of(slot)} after 10 s")


def redirect(slots):
    rules = "\n".join(f"ip daddr {address_of(slot)} tcp dport 80 redirect to :{port_of(slot)}" for slot in slots)
    table = f"table inet features {{ chain out {{ type nat hook output priority -100; meta skuid {PROXY_UID} return\n{rules}\n}}\n}}"
    sh(f"ip netns exec {APP} nft delete table inet features", check=False)
    subprocess.run(["ip", "netns", "exec", APP, "nft", "-f", "-"], input=table, text=True, check=True)


def load(slots, seconds):
    """Requests answered at each slot."""
    def wrk(slot):
        return subprocess.Popen(["ip", "netns", "exec", APP, "taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}",
                                 f"-d{seconds}s", f"http://{address_of(slot)}/"], stdout=subprocess.PIPE, text=True)
    answered = {}
    for slot, process in [(slot, wrk(slot)) for slot in slots]:
        said = process.communicate()[0]
        failed = re.search(r"Socket errors:.*|Non-2xx.*", said)
        if failed or not (count := re.search(r"(\d+) requests in", said)) or count[1] == "0":
            sys.exit(f"slot {slot}: {said}")
        answered[slot] = int(count[1])
    return answered


def cpu_seconds(process):
    tasks = pathlib.Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def one_round(work, proxyctl, seconds):
    """Microseconds of CPU time a request, by variant."""
    names = random.sample(list(VARIANTS), len(VARIANTS))
    proxies = {slot: start(work, proxyctl, slot, VARIANTS[name][0]) for slot, name in enumerate(names)}
    try:
        for slot, process in proxies.items():
            await_listener(work, process, slot)
        redirect(proxies)
        load(proxies, 1)
        before = {slot: cpu_seconds(process) for slot, process in proxies.items()}
        answered = load(proxies, seconds)
        return {names[slot]: (cpu_seconds(process) - before[slot]) / answered[slot] * 1e6
                for slot, process in proxies.items()}
    finally:
        for process in proxies.values():
            process.terminate()
            process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxyctl", required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    missing = [tool for tool in ["ip", "nft", "nginx", "wrk", "setpriv", "taskset"] if not shutil.which(tool)]
    if missing:
        sys.exit(f"not here: {', '.join(missing)}")
    rounds = []
    with tempfile.TemporaryDirectory(prefix="og-features-") as work:
        work = pathlib.Path(work)
        os.chmod(work, 0o755)
        # Where the proxy's user can read it.
        proxyctl = shutil.copy(arguments.proxyctl, work)
        nginx = set_up(work)
        try:
            for number in range(arguments.rounds):
                print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
                rounds.append(one_round(work, proxyctl, arguments.seconds))
        finally:
            nginx.terminate()
            nginx.wait()
            tear_down()
    rows = []
    for name, (_, promised) in VARIANTS.items():
        ratios = sorted(costs[name] / costs["plain"] for costs in rounds)
        rows.append({"variant": name, "cpu_us": statistics.median(costs[name] for costs in rounds),
                     "ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1], "promised": promised})
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'':50}{'CPU us':>8}{'ratio':>8}{'lowest':>8}{'highest':>8}{'promised':>10}")
    for row in rows:
        promised = f"{row['promised']:.2f}" if row["promised"] else ""
        print(f"{row['variant']:50}{row['cpu_us']:8.1f}{row['ratio']:8.3f}{row['lowest']:8.3f}{row['highest']:8.3f}{promised:>10}")


if __name__ == "__main__":
    main()
