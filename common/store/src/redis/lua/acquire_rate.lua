-- KEYS: the account's rate state, its block, and the request id of a 429. ARGV: limit or '', slow start, wanted, sent,
-- and the time to block after a 429 or ''. The same algorithm as the rate allocator in Rust, which explains the
-- constants. First reply: 0 wait, in milliseconds; 1 unlimited; 2 slots, in microseconds from now.
local MAX_GRANT_SPAN_MS, MAX_SLOTS_PER_GRANT = 250, 256
local SLOW_START_RATE, SLOW_START_LEVELS = 100, 5
local LEARNED_RATE_TTL_MS, KEY_TTL_MS = 600000, 3600000
local FIELDS = {
    'next_slot_at', 'slow_start_level', 'slow_start_level_since', 'learned_rate', 'grown_at', 'decreased_at',
    'throttled_at', 'second_start', 'current_count', 'previous_count',
}
local time = now()
-- A 429 reported twice halves the rate once. Slots granted twice are lost within the span of a grant.
if ARGV[6] ~= '' and not is_first(KEYS[3]) then return {} end
local limit, slow_start = tonumber(ARGV[2]), ARGV[3] == '1'
local s = {}
for i, value in ipairs(redis.call('HMGET', b, unpack(FIELDS))) do s[FIELDS[i]] = tonumber(value or '0') or 0 end

local function record_sent(requests)
    if time >= s.second_start + 2000 or time < s.second_start then
        s.second_start, s.current_count, s.previous_count = time, 0, 0
    elseif time >= s.second_start + 1000 then
        s.second_start, s.current_count, s.previous_count = s.second_start + 1000, 0, s.current_count
    end
    s.current_count = s.current_count + requests
end

local function recent_rate()
    return s.current_count + s.previous_count * math.min(math.max(1 - (time - s.second_start) / 1000, 0), 1)
end

local function save()
    local values = {}
    for _, field in ipairs(FIELDS) do
        values[#values + 1] = field
        values[#values + 1] = string.format('%.6f', s[field])
    end
    redis.call('HSET', b, unpack(values))
    redis.call('PEXPIRE', b, KEY_TTL_MS)
end

record_sent(tonumber(ARGV[5]))
local blocked_until = tonumber(redis.call('GET', KEYS[2]) or '0')
if not is_unexpired(blocked_until, time) then blocked_until = 0 end

if ARGV[6] ~= '' then
    local wait = tonumber(ARGV[6])
    if wait > 0 and time + wait > blocked_until then
        redis.call('SET', KEYS[2], integer_text(time + wait), 'PX', integer_text(wait + 1000))
    end
    if not limit then
        if s.learned_rate > 0 and time - s.decreased_at < 1000 then
            s.throttled_at = time
        else
            s.learned_rate = s.learned_rate > 0 and math.max(s.learned_rate / 2, 1) or math.max(recent_rate() / 2, 10)
            s.decreased_at, s.throttled_at, s.grown_at = time, time, time
        end
    end
    save()
    return {}
end

if blocked_until > time then
    save()
    return {0, blocked_until - time}
end

local rate = limit
if not rate and s.learned_rate > 0 then
    if time - s.throttled_at >= LEARNED_RATE_TTL_MS then
        s.learned_rate, s.slow_start_level, s.slow_start_level_since = 0, 0, time
    else
        if recent_rate() * 2 >= s.learned_rate then
            s.learned_rate = s.learned_rate * 1.05 ^ (math.min(math.max(time - s.grown_at, 0), 1000) / 1000)
        end
        s.grown_at = time
        rate = s.learned_rate
    end
end
if not rate and slow_start and s.slow_start_level < SLOW_START_LEVELS then
    if s.slow_start_level_since == 0 then
        s.slow_start_level_since = time
    elseif time - s.slow_start_level_since >= 1000 then
        s.slow_start_level, s.slow_start_level_since = s.slow_start_level + 1, time
    end
    if s.slow_start_level < SLOW_START_LEVELS then rate = SLOW_START_RATE * 2 ^ s.slow_start_level end
end
if not rate then
    save()
    return {1}
end

local period = 1000 / rate
local slack = (math.max(math.floor(rate / 4), 1) - 1) * period
if s.next_slot_at > time + LEARNED_RATE_TTL_MS + 100 * period then s.next_slot_at = time end
local answer, first = {2}, nil
for _ = 1, math.min(math.max(tonumber(ARGV[4]), 1), MAX_SLOTS_PER_GRANT) do
    local due = math.max(s.next_slot_at, time)
    local wait = math.max(due - slack, time) - time
    if first and wait > first + MAX_GRANT_SPAN_MS then break end
    first = first or wait
    answer[#answer + 1] = math.floor(wait * 1000 + 0.5)
    s.next_slot_at = due + period
end
record_sent(#answer - 1)
save()
return answer
