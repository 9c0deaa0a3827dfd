# shellcheck shell=bash
# The stage of a load run, to be sourced: the programs under test, each a process of its own on a
# port that the kernel chose, and their end, by process id, however the script ends.
#
#   build                 the release programs, or those in TIDEGATE_PROGRAMS as they are
#   start NAME ARG...     runs `tidegate ARG...`; sets `address` and `pid` when it is ready
#   start_pair ARG...     `tidegate simulate ARG...` over HTTPS and HTTP/2 and the gateway before it; sets
#                         `address` and `pid` of the gateway and `admin`, its admin address
#
# `folder` holds logs and whatever a script puts there; it is gone afterwards.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
programs=${TIDEGATE_PROGRAMS:-target/release}
folder=$(mktemp -d)

# The children that still run are told to end, and after ten seconds made to.
end_stage() {
    local signal
    for signal in TERM KILL; do
        jobs -pr | xargs -r kill -"$signal" 2>/dev/null || true
        for _ in $(seq 100); do
            [ -z "$(jobs -pr)" ] && break
            sleep 0.1
        done
    done
    rm -rf "$folder"
}
trap end_stage EXIT
# Without these, bash would not run the EXIT trap before the program in front of it has ended.
trap 'exit 130' INT
trap 'exit 143' TERM

build() {
    [ -n "${TIDEGATE_PROGRAMS:-}" ] || cargo build --release --workspace
}

start() {
    local name=$1
    shift
    # It is looked into before the program may have been started.
    : >"$folder/$name.err"
    "$programs/tidegate" "$@" >"$folder/$name.log" 2>>"$folder/$name.err" &
    pid=$!
    for _ in $(seq 100); do
        address=$(sed -nE 's/.*ready: listening on ([^ ,]+).*/\1/p' "$folder/$name.err")
        [ -n "$address" ] && return
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    cat "$folder/$name.err" >&2
    exit 1
}

start_pair() {
    start simulator simulate --listen 127.0.0.1:0 --tls --cert-out "$folder/ca.pem" --h2-max-streams 100 "$@"
    cat >"$folder/gateway.toml" <<TOML
[server]
listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:0"
[limits]
connections = 19000
streams = 19000
new_streams_per_second = 100000
[[upstream]]
name = "simulator"
urls = ["https://localhost:${address##*:}"]
ca = "$folder/ca.pem"
TOML
    start gateway serve --config "$folder/gateway.toml"
    # shellcheck disable=SC2034 # for the script that sources this
    admin=$(sed -nE 's/.*ready: .*admin on ([^ ,]+).*/\1/p' "$folder/gateway.err")
}
