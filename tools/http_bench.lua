-- The loads of the HTTP benchmarks, for wrk: wrk -s http_bench.lua URL -- LOAD USERS PIPELINED SEED
--   LOAD       a name of `prices` or `reads` below, or hello: a POST that is always the same, answers not looked at
--   USERS      requests are of users 1 to USERS
--   PIPELINED  requests a write; latencies are those of a whole write, and all of them are in the result
--   SEED       the same seed draws the same requests
-- Its last line is RESULT and a JSON object. Refused: answers with an error in them, or another status than 200.

local MARKET = "BTCUSDT"
local ASK, BID = 1, 2
local HEADERS = {["Content-Type"] = "application/json"}

-- order.put_limit: the lowest and the highest price of each side, in cents, all between them equally often
local prices = {
  cross = {[ASK] = {799500, 800000}, [BID] = {800000, 800500}},   -- nearly all trade: the book stays small
  random = {[ASK] = {799000, 801000}, [BID] = {799000, 801000}},  -- half of them find nobody and stay
  rest = {[ASK] = {800100, 900000}, [BID] = {700000, 799900}},    -- none trades: the book only grows
}

local users

-- name = function that returns method and params
local reads = {
  ["balance"] = function() return "balance.query", string.format('%d,"BTC","USDT"', math.random(users)) end,
  ["depth_20"] = function() return "order.depth", string.format('"%s",20,"0"', MARKET) end,
  ["depth_100_merged_0.1"] = function() return "order.depth", string.format('"%s",100,"0.1"', MARKET) end,
  ["book_20"] = function() return "order.book", string.format('"%s",%d,0,20', MARKET, math.random(ASK, BID)) end,
  ["pending_20"] = function()
    return "order.pending", string.format('%d,"%s",0,20', math.random(users), MARKET)
  end,
}

local function put_limit(ranges)
  local side = math.random(ASK, BID)
  return "order.put_limit", string.format(
    '%d,"%s",%d,"%.4f","%.2f","0.002","0.001","load"', math.random(users), MARKET, side,
    math.random(10, 10000) / 1e4, math.random(ranges[side][1], ranges[side][2]) / 100)
end

local threads = {}

function setup(thread)
  table.insert(threads, thread)
  thread:set("number", #threads)
end

function init(arguments)
  local load, id = arguments[1], 0
  users, pipelined, with_error = tonumber(arguments[2]), tonumber(arguments[3]), 0
  math.randomseed(1000 * tonumber(arguments[4]) + number)
  if load == "hello" then
    wrk.method, wrk.headers["Content-Type"], wrk.body = "POST", HEADERS["Content-Type"], "{}"
    return
  end
  local draw = reads[load] or function() return put_limit(prices[load]) end
  local function next_request()
    id = id + 1
    local method, params = draw()
    return wrk.format("POST", "/", HEADERS, string.format('{"id":%d,"method":"%s","params":[%s]}', id, method, params))
  end
  request = next_request  -- wrk calls these two where they are there
  if pipelined > 1 then
    local parts = {}
    function request()
      for part = 1, pipelined do parts[part] = next_request() end
      return table.concat(parts)
    end
  end
  function response(status, _headers, body)
    if status < 400 and (status ~= 200 or body:find('"code"', 1, true)) then with_error = with_error + 1 end
  end
end

function done(summary, latency)
  local errors = summary.errors
  local refused = errors.status  -- 400 and above
  for _, thread in ipairs(threads) do refused = refused + thread:get("with_error") end
  local latencies = {}
  if threads[1]:get("pipelined") > 1 then
    for index = 1, #latency do latencies[index] = string.format("[%d,%d]", latency(index)) end
  end
  io.write(string.format(
    'RESULT {"requests":%d,"refused":%d,"errors":%d,"duration_us":%d,"p50_ms":%.3f,"p99_ms":%.3f,"p999_ms":%.3f,' ..
    '"latencies_us":[%s]}\n',
    summary.requests, refused, errors.connect + errors.read + errors.write + errors.timeout, summary.duration,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
    table.concat(latencies, ",")))
end
