#!/bin/sh
# Every check of this project, on the real kernel too: style, types, packages, tests. Needs root, on Debian;
# installs what is missing and writes nothing into the checkout. Arguments go to pytest. Ends with status 0
# if all is well; otherwise what failed is named.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=examples/setup.sh
. "$root/examples/setup.sh"

require_root
# shellcheck disable=SC2086 # lists of words
install_packages $build_packages $gateway_packages nginx-light curl wrk iperf3 tcpdump iputils-ping conntrack \
    conntrackd keepalived dnsmasq-base bind9-dnsutils prometheus tshark systemd zsh mandoc
install_project test,fuzz

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM HUP
export HYPOTHESIS_STORAGE_DIRECTORY="$scratch/hypothesis"
cd "$root"
failed=

step() {
    name=$1
    shift
    echo "== $name"
    "$@" || failed="$failed $name"
}

build_packages_and_check() {
    mkdir "$scratch/source" || return
    copy_sources "$scratch/source" || return
    "$venv/bin/python" -m build --outdir "$scratch/dist" "$scratch/source" >"$scratch/build.log" 2>&1 ||
        { cat "$scratch/build.log"; return 1; }
    "$venv/bin/python" tests/check_packages.py "$scratch/dist"
}

# Which tests have failed is remembered, unlike by default, and outside of the checkout.
pytest() {
    "$venv/bin/python" -m pytest --ignore=tests/bench --basetemp="$scratch/pytest" \
        -o addopts="--strict-markers --strict-config --import-mode=importlib" -o cache_dir="$scratch/cache" "$@"
}

# Most tests wait for programs more than they compute, so there are more of them at once than processors.
# Now and then one is late for the others' sake: what failed in a few files is run again, alone, and must pass.
run_tests() {
    pytest -n 3 --dist loadfile "$@" && return
    files=$(grep -o '^ *"[^":]*' "$scratch/cache/v/cache/lastfailed" 2>/dev/null | sort -u | wc -l)
    [ "$files" -ge 1 ] && [ "$files" -le 3 ] || return 1
    echo "== tests: those that failed, alone"
    pytest -n 0 --last-failed --last-failed-no-failures none "$@"
}

step style "$venv/bin/ruff" check --no-cache .
step types "$venv/bin/mypy" --cache-dir "$cache/mypy"
step packages build_packages_and_check
step tests run_tests "$@"

[ -z "$failed" ] || fail "failed:$failed"
