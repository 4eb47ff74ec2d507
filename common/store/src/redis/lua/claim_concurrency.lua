-- KEYS: the account's permits. ARGV: holder, limit, in use, wanted, TTL. The same algorithm as the concurrency
-- allocator in Rust.
local ROTATION_INTERVAL_MS = 1000
local time = now()
local holder, limit, in_use, wanted = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local own = {held = 0, waiting_since = 0, held_since = 0}
local others, other_count, contended, has_starving, is_oldest = 0, 0, false, false, true
local all_waiting_since, all_held_since = {}, {}
local all = redis.call('HGETALL', b)
for at = 1, #all, 2 do
    local held, expires_at, waiting_since, held_since = string.match(all[at + 1], '^(%d+)|(%d+)|(%d+)|(%d+)$')
    held, expires_at = tonumber(held), tonumber(expires_at)
    waiting_since, held_since = tonumber(waiting_since), tonumber(held_since)
    if expires_at <= time then
        redis.call('HDEL', b, all[at])
    elseif all[at] == holder then
        own = {held = held, waiting_since = waiting_since, held_since = held_since}
    else
        other_count = other_count + 1
        others = others + held
        if held > 0 then all_held_since[#all_held_since + 1] = held_since end
        if waiting_since > 0 then
            contended = true
            all_waiting_since[#all_waiting_since + 1] = waiting_since
            if held == 0 then has_starving = true end
        end
    end
end
if wanted == 0 and in_use == 0 then
    redis.call('HDEL', b, holder)
    return {0, 0}
end
local fair_share = math.max(math.floor(limit / (other_count + 1)), 1)
local target = math.min(wanted, limit)
if contended then target = math.min(target, fair_share) end
for _, held_since in ipairs(all_held_since) do
    if held_since < own.held_since then is_oldest = false end
end
local has_had_turn = own.held_since > 0 and time - own.held_since >= ROTATION_INTERVAL_MS
if has_starving and other_count + 1 > limit and has_had_turn and is_oldest then target = 0 end
local current = math.max(own.held, in_use)
local ahead = 0
for _, waiting_since in ipairs(all_waiting_since) do
    if own.waiting_since == 0 or waiting_since < own.waiting_since then ahead = ahead + 1 end
end
local room = math.max(limit - others - current - ahead, 0)
local permits = math.min(target, current + room)
local held = math.max(permits, in_use)
local waiting_since, held_since = 0, 0
if permits < math.min(wanted, limit, fair_share) then
    waiting_since = own.waiting_since > 0 and own.waiting_since or time
end
if held > 0 then held_since = own.held_since > 0 and own.held_since or time end
local expires_at = integer_text(time + tonumber(ARGV[6]))
local claim = {integer_text(held), expires_at, integer_text(waiting_since), integer_text(held_since)}
redis.call('HSET', b, holder, table.concat(claim, '|'))
redis.call('PEXPIRE', b, tonumber(ARGV[6]) + 60000)
return {permits, contended and 1 or 0}
