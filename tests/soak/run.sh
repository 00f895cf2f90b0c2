#!/bin/sh
# Traffic for a long time through a gateway that suffers faults, with everything counted and compared. Needs
# root, on Debian; installs what is missing. Arguments go to the soak: --help lists them.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=examples/setup.sh
. "$root/examples/setup.sh"

require_root
# shellcheck disable=SC2086 # lists of words
install_packages $build_packages $gateway_packages nginx-light curl dnsmasq-base bind9-dnsutils dnsperf
install_project test
cd "$root"
exec "$venv/bin/python" -m tests.soak "$@"
