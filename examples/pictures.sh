#!/bin/sh
# Makes the pictures of `nfqlb top` that the README shows: runs the demo for two minutes, stops one of its servers
# from answering, gives another one less weight, and writes each view as SVG into examples/pictures. Needs root,
# on Debian; installs what is missing.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=examples/setup.sh
. "$root/examples/setup.sh"

require_root
# shellcheck disable=SC2086 # lists of words
install_packages $build_packages $gateway_packages nginx-light
install_project ""

log=$(mktemp)
"$venv/bin/nfqlb" demo >"$log" 2>&1 &
demo=$!
trap 'kill $demo 2>/dev/null || true; wait $demo || true; rm -f "$log"' EXIT
trap 'exit 130' INT TERM HUP

socket=
while [ -z "$socket" ]; do
    kill -0 $demo 2>/dev/null || { cat "$log" >&2; fail "the demo has ended"; }
    sleep 1
    socket=$(sed -n 's/.*nfqlb top --socket \([^ ]*\).*/\1/p' "$log")
done
site=$(basename "$(dirname "$socket")")

sleep 60
ip netns exec "$site-web3" iptables -w -I INPUT -p tcp --syn -j DROP
sleep 25
"$venv/bin/nfqlb" set real web2 weight=1 --socket "$socket"
sleep 5
mkdir -p "$root/examples/pictures"
"$venv/bin/python" -P -m nfqlb.operator.dashboard.pictures "$socket" "$root/examples/pictures"
