#!/bin/sh
# Shows nfqlb at work on this machine: clients, a gateway and three unlike web servers, each in a network
# namespace of its own, with real traffic and a live picture of it. Needs root, on Debian; installs what is
# missing. Arguments go to `nfqlb demo`: --duration SECONDS. Ends on Ctrl-C and takes everything down.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=examples/setup.sh
. "$root/examples/setup.sh"

require_root
# shellcheck disable=SC2086 # lists of words
install_packages $build_packages $gateway_packages nginx-light
install_project ""
exec "$venv/bin/nfqlb" demo "$@"
