-- A short JSON request for wrk, and its totals as one line of JSON for the script that runs it.

wrk.method = "POST"
wrk.body = '{"model":"tide-1","messages":[{"role":"user","content":"hello"}]}'
wrk.headers["content-type"] = "application/json"
wrk.headers["sim-count"] = "20"

function done(summary, latency, _)
    local errors = summary.errors
    io.write(string.format(
        '\nTOTALS {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,' ..
        '"errors":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
