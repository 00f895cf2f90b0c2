#!/bin/sh
# Compares nfqlb with plain routing, kernel DNAT, HAProxy, nginx and an empty callback, side by side on this
# machine. Needs root, on Debian; installs what is missing. Arguments go to the benchmark: --help lists them.
# `run.sh micro` measures what a packet and a decision cost inside the worker instead.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/examples/setup.sh"

require_root
# shellcheck disable=SC2086 # lists of words
install_packages $build_packages $gateway_packages conntrack curl haproxy libnginx-mod-stream nginx-light wrk
install_project ""
cd "$root"
exec "$venv/bin/python" -m tests.bench "$@"
