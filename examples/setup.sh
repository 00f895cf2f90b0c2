# shellcheck shell=sh disable=SC2034,SC2154 # variables go to and come from the script that sources this
# Sourced by the scripts of this project: sets up, on Debian and as root, what they need.
#
#   install_packages PACKAGE...   installs the Debian packages that are missing, starting no service
#   install_project EXTRA         sets $venv: a virtual environment with this checkout and its dependencies;
#                                 EXTRA is one of setup.cfg's, or empty
#
# Expects $root, the checkout. Writes nothing into it: the environment is in ${XDG_CACHE_HOME:-~/.cache}/nfqlb
# and is made once; later runs notice changed sources and dependencies by their checksums.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/nfqlb
python=${PYTHON:-/usr/bin/python3}
build_packages="python3-venv python3-dev gcc libc6-dev libnetfilter-queue-dev"
gateway_packages="iproute2 iptables nftables util-linux"
export PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

require_root() {
    [ "$(id -u)" = 0 ] || fail "needs root, for network namespaces and iptables; run it with sudo"
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install_packages() {
    command -v dpkg-query apt-get >/dev/null || fail "sets itself up on Debian only; install these yourself: $*"
    missing=
    for package in "$@"; do
        is_installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    echo "Installing Debian packages:$missing"
    # In a subshell: its trap removes the policy file however this ends.
    (
        log=$(mktemp)
        trap 'rm -f "$log"' EXIT
        if [ ! -e /usr/sbin/policy-rc.d ]; then
            # A web server that is installed for tests must not start on this machine's own port 80.
            trap 'rm -f "$log" /usr/sbin/policy-rc.d' EXIT
            printf '#!/bin/sh\n# placed by nfqlb while it installs packages; may be removed\nexit 101\n' \
                >/usr/sbin/policy-rc.d
            chmod 755 /usr/sbin/policy-rc.d
        fi
        trap 'exit 130' INT TERM HUP
        export DEBIAN_FRONTEND=noninteractive
        # shellcheck disable=SC2086 # a list of words
        { apt-get update && apt-get install -y --no-install-recommends $missing; } </dev/null >"$log" 2>&1 ||
            { cat "$log" >&2; fail "apt-get could not install:$missing"; }
    ) || exit 1
    for service in nginx haproxy prometheus; do
        case " $missing " in *" $service"*) # nor after the next boot
            ! command -v systemctl >/dev/null || systemctl --quiet disable "$service" 2>/dev/null || true ;;
        esac
    done
}

checksum() {
    (cd "$root" && find "$@" -type f ! -path '*/__pycache__/*' ! -path '*.egg-info/*' -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
}

# A copy of what is packed into the distribution: setuptools would leave its build directories in the checkout.
copy_sources() {
    (cd "$root" && tar -cf - --exclude=__pycache__ --exclude='*.egg-info' \
        nfqlb iptables setup.cfg pyproject.toml README.md LICENSE) | tar -xf - -C "$1"
}

install_project() {
    extra=$1
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "needs Python 3.11 or later; $python is older (PYTHON=... names another)"
    venv=$cache/venv-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9 # another run may be at it
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    stamp=$venv/nfqlb${extra:+-$extra}.stamp
    needs=$(checksum setup.cfg pyproject.toml)
    sources=$(checksum nfqlb iptables setup.cfg pyproject.toml README.md LICENSE)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$needs" ]; then
        echo "Installing nfqlb and its Python packages into $venv"
        install_sources "${extra:+[$extra]}"
        echo "$needs" >"$stamp"
    elif [ "$(cat "$venv/nfqlb.sources" 2>/dev/null)" != "$sources" ]; then
        echo "The sources have changed: installing nfqlb into $venv again"
        install_sources "" --no-deps --force-reinstall
    fi
    echo "$sources" >"$venv/nfqlb.sources"
    exec 9>&-
}

install_sources() {
    wanted=$1
    shift
    (
        copy=$(mktemp -d)
        trap 'rm -rf "$copy"' EXIT
        trap 'exit 130' INT TERM HUP
        copy_sources "$copy"
        "$venv/bin/python" -m pip install --quiet --no-cache-dir "$@" "$copy$wanted" 9>&-
    ) || exit 1
}
