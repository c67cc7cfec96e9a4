-- Load of the HTTP benchmarks, for wrk: wrk -s http_bench.lua URL -- KIND USERS
--   orders: order.put_limit on BTCUSDT, both sides around 8000, so that nearly all trade and the book stays small
--   reads : order.depth, 20 levels
local thread_count = 0
function setup(thread)
  thread:set("id", thread_count)
  thread_count = thread_count + 1
  threads = threads or {}
  table.insert(threads, thread)
end
function init(args)
  kind, users = args[1], tonumber(args[2])
  math.randomseed(id + 1)
  number, refused = 0, 0
end
function request()
  number = number + 1
  local body
  if kind == "reads" then
    body = string.format('{"id":%d,"method":"order.depth","params":["BTCUSDT",20,"0"]}', number)
  else
    local side = math.random(1, 2)
    local price = side == 2 and 8000 + math.random(0, 500) / 100 or 8000 - math.random(0, 500) / 100
    body = string.format('{"id":%d,"method":"order.put_limit","params":[%d,"BTCUSDT",%d,"%.4f","%.2f","0.002","0.001","load"]}',
      number, math.random(1, users), side, math.random(10, 10000) / 10000, price)
  end
  return wrk.format("POST", "/", nil, body)
end
function response(status, headers, body)
  if status ~= 200 or body:find('"code"', 1, true) then refused = refused + 1 end
end
function done(summary, latency, requests)
  local all = 0
  for _, thread in ipairs(threads) do all = all + thread:get("refused") end
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('RESULT {"requests":%d,"refused":%d,"errors":%d,"seconds":%.3f,"p50_ms":%.3f,"p99_ms":%.3f,"p999_ms":%.3f}\n',
    summary.requests, all, errors, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency:percentile(99.9) / 1e3))
end
