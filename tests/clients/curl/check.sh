#!/usr/bin/env bash
# The cases of tests/clients with curl, as python/openai_chat.py has them, and two of its own: a HEAD, and
# the line that `tidegate demo` prints.
#
#     check.sh GATEWAY_URL ADMIN_URL 1.0|1.1|2 FOLDER [LINE]
#
# FOLDER takes what was received. Prints one line per case: name, ok or FAILED, detail, separated by
# tabs.
set -u

gateway=$1 admin=$2 version=$3 folder=$4 line=${5-}
json='content-type: application/json'
chat='{"model":"tide-1","stream":true,"messages":[]}'
words='The tide comes in without '
failed=0

case $version in
1.0) protocol=--http1.0 ;;
1.1) protocol=--http1.1 ;;
2) protocol=--http2-prior-knowledge ;;
esac

# ask NAME PATH OPTION...: body to $body, head to $head, curl's exit code to $code.
ask() {
    body=$folder/$1.body head=$folder/$1.head
    curl -sSN "$protocol" --max-time 20 -D "$head" -o "$body" "$gateway$2" "${@:3}" 2>"$folder/$1.err"
    code=$?
}

fail() {
    echo "$*"
    return 1
}

same() { # WHAT GOT WANTED
    [[ $2 == "$3" ]] || fail "$1: $2 instead of $3"
}

metric() {
    curl -sS --max-time 5 "$admin/metrics" |
        awk -v series="$1" 'index($0, series) == 1 { sum += $NF } END { print sum + 0 }'
}

ended() {
    metric "tidegate_streams_ended_total{upstream=\"simulated\",reason=\"$1\""
}

until_is() { # WANTED WHAT...: within a second
    local deadline=$((${EPOCHREALTIME/./} + 1000000))
    until [[ $("${@:2}") == "$1" ]]; do
        ((${EPOCHREALTIME/./} < deadline)) || fail "not within 1 s: ${*:2} = $1" || return
        sleep 0.02
    done
}

sent() { # the status line's version, as the protocol asked for shows itself in an answer
    local wanted=HTTP/$version
    [[ $version == 1.0 ]] && wanted=HTTP/1.
    [[ $(head -n1 "$head") == "$wanted"* ]] || fail "answered $(head -n1 "$head")" || return
    [[ $version == 1.1 ]] || ! grep -qi '^transfer-encoding' "$head" || fail "has transfer-encoding"
}

seqs() {
    grep -o '"seq":[0-9]*' "$body" | cut -d: -f2 | paste -sd' '
}

text() { # the contents of a body, joined
    grep -oE '"(content|text)":"[^"]*"' "$1" | cut -d'"' -f4 | tr -d '\n'
}

a_stream() { # PATH INTERVAL REQUEST
    ask stream "$1" -H "$json" -H "sim-interval: $2" -H 'sim-count: 5' -d "$3"
    same "exit code" "$code" 0 || return
    sent || return
    same events "$(seqs)" '1 2 3 4 5' || return
    same text "$(text "$body")" "$words" || return
    same "last line" "$(grep -v '^$' "$body" | tail -n1)" 'data: [DONE]' || return
    beats=$(grep -c '^: ping$' "$body")
    # A bare line right before the next event or heartbeat, never a blank one after it.
    ! grep -A1 '^: ping$' "$body" | grep -q '^$' || fail 'a blank line after a heartbeat'
}

stream() {
    a_stream /v1/chat/completions 600ms "$chat" || return
    ((beats >= 4)) || fail "only $beats heartbeats in 4 gaps" || return
    echo "$beats heartbeats"
}

failure() {
    # A body without an end of its own, in HTTP/1.0, can only be broken off by a reset.
    local -A wanted=([1.0]=56 [1.1]=18 [2]=92)
    ask failure /v1/chat/completions -H "$json" -H 'sim-interval: 20ms' -d "$chat" \
        -H 'sim-fault: fin' -H 'sim-fault-after: 3'
    same events "$(seqs)" '1 2 3' || return
    grep -q '^data: {"error":.*upstream_truncated' "$body" || fail 'no error event' || return
    same "exit code" "$code" "${wanted[$version]}" || return
    echo "exit code $code"
}

cancel() {
    local before pid deadline seen=0
    before=$(ended client_closed)
    body=$folder/cancel.body
    : >"$body"
    curl -sSN "$protocol" --max-time 20 -o "$body" "$gateway/v1/chat/completions" -H "$json" \
        -H 'sim-interval: 300ms' -H 'sim-count: 50' -d "$chat" 2>"$folder/cancel.err" &
    pid=$!
    deadline=$((SECONDS + 10))
    while ((seen < 2 && SECONDS < deadline)); do
        sleep 0.05
        seen=$(grep -c '"seq"' "$body")
    done
    kill "$pid"
    wait "$pid" 2>/dev/null
    ((seen >= 2)) || fail "only $seen events in 10 s" || return
    until_is $((before + 1)) ended client_closed || return
    until_is 0 metric tidegate_streams_live
}

plain() {
    local before
    before=$(ended completed)
    ask plain /v1/chat/completions -H "$json" -H 'sim-count: 5' -d "${chat/true/false}"
    same "exit code" "$code" 0 || return
    sent || return
    same text "$(text "$body")" "$words" || return
    until_is $((before + 1)) ended completed
}

models() {
    ask models /v1/models
    same "exit code" "$code" 0 || return
    sent || return
    same ids "$(grep -o '"id":"[^"]*"' "$body" | cut -d'"' -f4 | paste -sd' ')" 'tide-1 tide-1-mini'
}

head_only() {
    local before length
    before=$(ended completed)
    ask head_only /v1/models -I
    same "exit code" "$code" 0 || return
    sent || return
    length=$(tr -d '\r' <"$head" | awk 'tolower($1) == "content-length:" { print $2 }')
    same content-length "$length" "$(wc -c <"$folder/models.body" | tr -d ' ')" || return
    until_is $((before + 1)) ended completed
}

status() {
    ask status /v1/chat/completions -H "$json" -H 'sim-status: 429' -d "$chat"
    same "exit code" "$code" 0 || return
    same status "$(awk 'NR == 1 { print $2 }' "$head")" 429 || return
    grep -q '"error":{' "$body" || fail 'no error in the body'
}

completions() {
    a_stream /v1/completions 300ms '{"model":"tide-1","stream":true,"prompt":"hello"}'
}

embeddings() {
    ask embeddings /v1/embeddings -H "$json" -d '{"model":"tide-1","input":["one","two"]}'
    same "exit code" "$code" 0 || return
    same vectors "$(grep -o '"embedding":\[0.5,-0.25,' "$body" | wc -l | tr -d ' ')" 2
}

# The line to paste, run as it was printed: 40 tokens at 150 ms, each on its own.
demo_line() {
    local received=$folder/demo_line.times last=0 now alone=0 tokens=0
    timeout 30 bash -c "$line" 2>"$folder/demo_line.err" | while IFS= read -r read; do
        printf '%s %s\n' "${EPOCHREALTIME/./}" "$read"
    done >"$received"
    while read -r now _; do
        ((tokens += 1, alone += now - last > 50000, last = now))
    done < <(grep '"seq"' "$received")
    same tokens "$tokens" 40 || return
    grep -q 'data: \[DONE\]$' "$received" || fail 'no [DONE]' || return
    ((alone >= 36)) || fail "only $alone of $tokens tokens came alone" || return
    echo "$alone of $tokens tokens came alone"
}

run() { # NAME FUNCTION
    local detail
    if detail=$("$2" 2>&1); then
        printf '%s\tok\t%s\n' "$1" "$(paste -sd' ' <<<"$detail")"
    else
        printf '%s\tFAILED\t%s\n' "$1" "$(paste -sd' ' <<<"$detail")"
        failed=1
    fi
}

for name in stream failure cancel plain models status completions embeddings; do
    run "$name" "$name"
done
run HEAD head_only
if [[ -n $line ]]; then
    run 'demo line' demo_line
fi
exit "$failed"
