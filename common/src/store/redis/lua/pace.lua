-- KEYS: the account's rate state, its block, and the request id of a 429. ARGV: limit or '', slow start, wanted, sent,
-- and the time to block after a 429 or ''. The same algorithm as the rate allocator in Rust, which explains the
-- constants. First reply: 0 wait, in milliseconds; 1 unlimited; 2 slots, in microseconds from now.
local BLOCK, MOST, START, LEVELS, FORGET, KEPT_FOR = 250, 256, 100, 5, 600000, 3600000
local FIELDS = {'due', 'level', 'since', 'learnt', 'grown', 'cut', 'refused', 'second', 'current', 'previous'}
local time = now()
-- A 429 reported twice halves the rate once. Slots granted twice are lost within the span of a grant.
if ARGV[6] ~= '' and not is_first(KEYS[3]) then return {} end
local limit, careful = tonumber(ARGV[2]), ARGV[3] == '1'
local s = {}
for i, value in ipairs(redis.call('HMGET', b, unpack(FIELDS))) do s[FIELDS[i]] = tonumber(value or '0') or 0 end

local function count(requests)
    if time >= s.second + 2000 or time < s.second then
        s.second, s.current, s.previous = time, 0, 0
    elseif time >= s.second + 1000 then
        s.second, s.current, s.previous = s.second + 1000, 0, s.current
    end
    s.current = s.current + requests
end

local function recent()
    return s.current + s.previous * math.min(math.max(1 - (time - s.second) / 1000, 0), 1)
end

local function keep()
    local values = {}
    for _, field in ipairs(FIELDS) do
        values[#values + 1] = field
        values[#values + 1] = string.format('%.6f', s[field])
    end
    redis.call('HSET', b, unpack(values))
    redis.call('PEXPIRE', b, KEPT_FOR)
end

count(tonumber(ARGV[5]))
local held = tonumber(redis.call('GET', KEYS[2]) or '0')
if not lasts(held, time) then held = 0 end

if ARGV[6] ~= '' then
    local wait = tonumber(ARGV[6])
    if wait > 0 and time + wait > held then
        redis.call('SET', KEYS[2], text(time + wait), 'PX', text(wait + 1000))
    end
    if not limit then
        if s.learnt > 0 and time - s.cut < 1000 then
            s.refused = time
        else
            s.learnt = s.learnt > 0 and math.max(s.learnt / 2, 1) or math.max(recent() / 2, 10)
            s.cut, s.refused, s.grown = time, time, time
        end
    end
    keep()
    return {}
end

if held > time then
    keep()
    return {0, held - time}
end

local rate = limit
if not rate and s.learnt > 0 then
    if time - s.refused >= FORGET then
        s.learnt, s.level, s.since = 0, 0, time
    else
        if recent() * 2 >= s.learnt then
            s.learnt = s.learnt * 1.05 ^ (math.min(math.max(time - s.grown, 0), 1000) / 1000)
        end
        s.grown = time
        rate = s.learnt
    end
end
if not rate and careful and s.level < LEVELS then
    if s.since == 0 then
        s.since = time
    elseif time - s.since >= 1000 then
        s.level, s.since = s.level + 1, time
    end
    if s.level < LEVELS then rate = START * 2 ^ s.level end
end
if not rate then
    keep()
    return {1}
end

local period = 1000 / rate
local slack = (math.max(math.floor(rate / 4), 1) - 1) * period
if s.due > time + FORGET + 100 * period then s.due = time end
local answer, first = {2}, nil
for _ = 1, math.min(math.max(tonumber(ARGV[4]), 1), MOST) do
    local due = math.max(s.due, time)
    local wait = math.max(due - slack, time) - time
    if first and wait > first + BLOCK then break end
    first = first or wait
    answer[#answer + 1] = math.floor(wait * 1000 + 0.5)
    s.due = due + period
end
count(#answer - 1)
keep()
return answer
