# Sourced by the other tools, which set ROOT.  set_up makes what they need on a fresh
# clone: Debian packages where commands are missing, and a virtual environment in
# .venv, whose interpreter is then PYTHON.

fail() {
    echo "tools/$(basename "$0"): $*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] ||
        fail "needs root, to make hosts as network namespaces: run sudo $0"
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

makes_environments() {
    "$1" -c 'import ensurepip' 2>/dev/null
}

# The system's interpreter before one of the user's own: distributions build theirs with
# profiles, and one built without takes a fifth more time for each packet.
for INTERPRETER in /usr/bin/python3 python3; do
    new_enough "$INTERPRETER" && makes_environments "$INTERPRETER" && break
done

# Debian packages whose command is not there.
missing_packages() {
    for pair in python3:python3 ip:iproute2 nft:nftables iptables:iptables \
        iperf3:iperf3 tcpdump:tcpdump ping:iputils-ping nc:netcat-openbsd \
        tshark:tshark strace:strace; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
    done
    makes_environments "$INTERPRETER" || echo python3-venv
}

install_packages() {
    # nft, tcpdump and others may be out of an ordinary user's PATH.
    PATH=$PATH:/usr/sbin:/sbin
    packages=$(missing_packages | tr '\n' ' ')
    [ -n "$packages" ] || return 0
    command -v apt-get >/dev/null ||
        fail "please install what has the commands of Debian's $packages"
    [ "$(id -u)" = 0 ] || fail "please install: sudo apt-get install $packages"
    echo "Installing $packages"
    export DEBIAN_FRONTEND=noninteractive
    # Only its own words when it fails: a successful run of apt-get says nothing new.
    for step in update "install --yes --no-install-recommends $packages"; do
        # shellcheck disable=SC2086  # words on purpose
        output=$(apt-get -qq $step 2>&1) || fail "apt-get $step failed: $output"
    done
}

# What the native engine is built with: without it the same is done in Python, so it is
# no failure if it cannot be had.
install_headers() {
    [ -e /usr/include/openssl/evp.h ] && "$INTERPRETER" -c '
import os, sysconfig
os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null && return
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return 0
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends \
        gcc libc6-dev libssl-dev python3-dev >/dev/null 2>&1 || true
}

# Up to date means: made for this place from these files.
make_environment() {
    new_enough "$INTERPRETER" ||
        fail "needs Python 3.11 or newer, this is $("$INTERPRETER" --version)"
    venv=$ROOT/.venv
    wanted=$(
        {
            echo "$ROOT" "$INTERPRETER"
            cat "$ROOT/pyproject.toml" "$ROOT"/alpha_trio/proto/engine/*.[ch]
        } | sha256sum
    )
    [ "$(cat "$venv/stamp" 2>/dev/null)" = "$wanted" ] && return
    install_headers
    echo "Making the virtual environment $venv"
    "$INTERPRETER" -m venv --clear "$venv" || fail "$INTERPRETER -m venv $venv failed"
    "$venv/bin/pip" install -qq --disable-pip-version-check --root-user-action \
        ignore --editable "$ROOT[dev]" || fail "pip install failed, see above"
    echo "$wanted" >"$venv/stamp"
}

set_up() {
    install_packages
    make_environment
    PYTHON=$ROOT/.venv/bin/python
    # Hundreds of daemons start here: not each of them should compile its modules.
    unset PYTHONDONTWRITEBYTECODE
    export PYTHONPATH="$ROOT"
}
