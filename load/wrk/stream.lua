-- What wrk sends and how it counts; README.md says why.
--
--   wrk ... -s stream.lua URL -- SECONDS SPREAD_MS CONNECTIONS CHECK
--
-- Streams are begun for SECONDS; wrk's -d must be longer, so that the last ones can end. The
-- CONNECTIONS of a thread begin their first streams within SPREAD_MS instead of all at once. With
-- CHECK 1 every body is looked through for its end mark. The last line of output is JSON.

local ffi = require("ffi")
ffi.cdef("typedef struct { long s, us; } moment; int gettimeofday(moment *, void *);")
local clock = ffi.new("moment")

local function now()
   ffi.C.gettimeofday(clock, nil)
   return tonumber(clock.s) + tonumber(clock.us) / 1e6
end

wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = '{"model":"tide-1","stream":true,'
   .. '"messages":[{"role":"user","content":"How high is the tide?"}]}'

-- Longer than any run: the connection begins no stream any more.
local NEVER_MS = 3600 * 1000

-- In each thread. Globals, where done() is to see them.

without_done, strange_status = 0, 0
local stop_at, spread_ms, unbegun

function init(args)
   stop_at, spread_ms, unbegun = now() + args[1], tonumber(args[2]), tonumber(args[3])
   checked = args[4] == "1"
   -- wrk keeps heads and bodies only if there is somebody to show them to.
   if not checked then response = nil end
end

function delay()
   if unbegun > 0 then
      unbegun = unbegun - 1
      return math.random(0, spread_ms)
   end
   return now() < stop_at and 0 or NEVER_MS
end

function response(status, _, body)
   if status ~= 200 then
      strange_status = strange_status + 1
   elseif not body:find("data: [DONE]\n\n", -32, true) then
      without_done = without_done + 1
   end
end

-- In the main thread.

local threads = {}

function setup(thread)
   threads[#threads + 1] = thread
end

function done(summary, latency)
   local sums = { without_done = 0, strange_status = 0 }
   for _, thread in ipairs(threads) do
      for name in pairs(sums) do sums[name] = sums[name] + thread:get(name) end
   end
   local errors = summary.errors
   print(string.format(
      '{"responses":%d,"checked":%s,"without_done":%d,"strange_status":%d,"connect":%d,"read":%d,'
         .. '"write":%d,"timeout":%d,"status":%d,"mean_us":%.1f,"p50_us":%.1f,"p99_us":%.1f}',
      summary.requests, tostring(threads[1]:get("checked")), sums.without_done,
      sums.strange_status, errors.connect, errors.read, errors.write, errors.timeout,
      errors.status, latency.mean, latency:percentile(50), latency:percentile(99)))
end
