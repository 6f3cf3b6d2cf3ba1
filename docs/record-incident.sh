#!/bin/sh
# Stages the accident that Outrigger exists to prevent, in namespaces of its own, and prints what the
# README shows of it. Needs root, iptables, nginx and curl, and the path of a built `proxyctl`.
set -eu
proxyctl=$(realpath "${1:?usage: record-incident.sh PATH_OF_PROXYCTL}")
if [ -z "${INSIDE:-}" ]; then
    INSIDE=1 exec unshare --net --mount sh "$0" "$proxyctl"
fi
dir=$(mktemp -d)
PATH=$(dirname "$proxyctl"):$PATH
service=123.56.223.52

mount -t tmpfs none /run/netns 2>/dev/null || { mkdir -p /run/netns && mount -t tmpfs none /run/netns; }
ip netns add service
ip link add wire0 type veth peer name wire0 netns service
ip link set lo up
ip addr add 10.0.0.1/24 dev wire0
ip link set wire0 up
ip route add default via 10.0.0.2
ip -n service link set lo up
ip -n service addr add 10.0.0.2/24 dev wire0
ip -n service addr add $service/32 dev wire0
ip -n service link set wire0 up

server() { # NAME LISTEN ANSWER
    mkdir "$dir/$1"
    cat > "$dir/$1/nginx.conf" <<CONFIG
user root root; daemon off; master_process off; pid $dir/$1/pid; events {}
http { access_log off; client_body_temp_path $dir/$1/b; proxy_temp_path $dir/$1/p;
fastcgi_temp_path $dir/$1/f; uwsgi_temp_path $dir/$1/u; scgi_temp_path $dir/$1/s;
server { listen $2; location / { $3; } } }
CONFIG
}
server service $service:80 'return 200 "the service\n"'
server stranger 127.0.0.1:80 'return 404 "404: not here\n"'
ip netns exec service nginx -e stderr -p "$dir/service" -c "$dir/service/nginx.conf" & first=$!
nginx -e stderr -p "$dir/stranger" -c "$dir/stranger/nginx.conf" & second=$!
# Each removes its own pid file as it ends.
trap 'kill $first $second; wait $first $second || true; rm -r "$dir"' EXIT
for address in $service 127.0.0.1; do
    curl -s --retry 50 --retry-delay 1 --retry-connrefused -o "$dir/answer" http://$address/
done

# What a half-finished sidecar left.
iptables-legacy -t nat -N SIDECAR_OUTBOUND
iptables-legacy -t nat -A OUTPUT -p tcp -j SIDECAR_OUTBOUND
iptables-legacy -t nat -A SIDECAR_OUTBOUND -d 123.56.223.0/24 -p tcp --dport 80 -j REDIRECT --to-ports 80

show() {
    echo "\$ $*"
    sh -c "$*" || true
}
show "curl -s http://$service/"
show "proxyctl explain $service:80"
show "proxyctl doctor"
fix=$(proxyctl doctor | sed -n 's/^  fix: //p' | head -n 1)
show "$fix"
show "curl -s http://$service/"
show "proxyctl doctor"
