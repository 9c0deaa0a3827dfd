# shellcheck shell=bash disable=SC2154 # what load/stage.sh sets
# Two rows, low and high load, with one tool. To be sourced after load/stage.sh:
#
#   rows NAME VERSION    for each load calls `tool RATE AT_A_TIME FILE`, which the sourcing script
#                        defines and which starts NAME by `aside FILE ...` on `url` for `seconds`;
#                        then prints the table and ends the script
#
# A stream is COUNT events, INTERVAL_MS apart. LOW and HIGH are streams per second, TIME how many
# seconds each load lasts. QUICK=1 is for trying the scripts. SIMULATE holds further options for
# `tidegate simulate`, such as a fault; REPORT is where the JSON goes.

quick=false seconds=${TIME:-20} low=${LOW:-50} high=${HIGH:-5000}
if [ -n "${QUICK:-}" ]; then
    quick=true seconds=${TIME:-2} high=${HIGH:-500}
fi
count=${COUNT:-10} interval_ms=${INTERVAL_MS:-10}
length_ms=$((count * interval_ms))
# After which a stream has failed, and after which a program is stopped.
patience=$((10 + length_ms / 1000)) bound=$((seconds + 60 + 4 * length_ms / 1000))

# The gateway has one file per stream, an HTTP/2 connection per hundred, and some of its own; it is
# configured for 19,000 streams.
ulimit -n "$(ulimit -Hn)"
files=$(ulimit -n)
if [ "$files" = unlimited ] || [ "$files" -gt 20000 ]; then files=20000; fi
most=$((files - 1000))

# A command beside the script, so that a signal to the script does not wait for it; `pid` is its own.
aside() {
    local to=$1
    shift
    timeout --kill-after=5 "$bound" "$@" >"$to" 2>"$to.err" &
    pid=$!
}

# The status of the process `pid`; ends the script if it was stopped for taking too long.
finish() {
    local status=0
    wait "$2" || status=$?
    if [ "$status" = 124 ] || [ "$status" = 137 ]; then
        echo "$1 did not end within $bound s and was stopped" >&2
        exit 1
    fi
    return "$status"
}

row() {
    local asked=$2 rate=$2 run=$folder/$1 beside beside_rate status=0
    local at_a_time=$(((rate * length_ms + 999) / 1000))
    if [ "$at_a_time" -gt "$most" ]; then
        at_a_time=$most rate=$((most * 1000 / length_ms))
    fi
    mkdir "$run"
    cat >"$run/plan.json" <<JSON
{"asked_per_s": $asked, "scaled_per_s": $rate, "at_a_time": $at_a_time, "seconds": $seconds,
 "count": $count, "interval_ms": $interval_ms, "version": "$version", "quick": $quick}
JSON
    load/account snapshot "$gateway" "$admin" >"$run/before.json"

    # Beside the tool, and little against it: it checks every event, and times the first ones.
    beside_rate=$((rate / 100 > 10 ? rate / 100 : 10))
    aside "$run/beside.out" "$programs/tidegate-load" --url "$url" --quiet --json "$run/beside.json" \
        -n "$((beside_rate * seconds))" --ramp "$beside_rate" --count "$count" --interval "${interval_ms}ms" \
        --head-timeout "${patience}s" --idle-timeout "${patience}s"
    beside=$pid
    tool "$rate" "$at_a_time" "$run/tool.out"
    finish "$tool" "$pid" || status=$?
    if [ "$status" != 0 ]; then
        cat "$run/tool.out" "$run/tool.out.err" >&2
        echo "$tool ended with status $status" >&2
        exit 1
    fi
    # Status 2 is a finding, and in the report; without a report there is nothing to go by.
    finish tidegate-load "$beside" || status=$?
    if [ ! -s "$run/beside.json" ]; then
        cat "$run/beside.out.err" >&2
        echo "tidegate-load ended with status $status and without a report" >&2
        exit 1
    fi
    load/account snapshot "$gateway" "$admin" >"$run/after.json"
}

rows() {
    tool=$1 version=$2
    # shellcheck disable=SC2086 # several options
    start_pair --first-event 0 --count "$count" --interval "${interval_ms}ms" ${SIMULATE:-}
    gateway=$pid url=http://$address/v1/chat/completions
    row low "$low"
    row high "$high"
    local status=0
    load/account table "$tool" "$folder" "${REPORT:-target/load/$tool.json}" || status=$?
    exit "$status"
}
