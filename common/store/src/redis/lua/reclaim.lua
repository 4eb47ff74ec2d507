-- ARGV: scope (0 expired leases, 1 and an empty queue, 2 everything), grace. Replies the number of tasks that were
-- leased, and queued.
if redis.call('EXISTS', b) == 0 then return {-1, 0} end
local scope, time = tonumber(ARGV[2]), now()
local before = time - tonumber(ARGV[3])
local leased, queued = 0, 0
local leases = redis.call('HGETALL', b .. KEY_SUFFIXES.leases)
for at = 1, #leases, 2 do
    local expires_at = tonumber(string.match(leases[at + 1], '^%d+|(%d+)|'))
    if scope == 2 or expires_at <= before or (expires_at > time and not is_unexpired(expires_at, time)) then
        redis.call('HDEL', b .. KEY_SUFFIXES.leases, leases[at])
        if scope ~= 2 then redis.call('HINCRBY', b .. KEY_SUFFIXES.losses, leases[at], 1) end
        move_task(b, leases[at], RUNNING, NEW)
        leased = leased + 1
    end
end
if scope > 0 then
    local limit = '+inf'
    if scope == 1 then limit = integer_text(before) end
    local function return_to_plan(from, to)
        for _, index in ipairs(redis.call('ZRANGEBYSCORE', b .. KEY_SUFFIXES.retries, from, to)) do
            redis.call('ZREM', b .. KEY_SUFFIXES.retries, index)
            move_task(b, index, RETRY, NEW)
            queued = queued + 1
        end
    end
    return_to_plan('-inf', limit)
    return_to_plan('(' .. integer_text(time + 90000000), '+inf')
    if number(b, 's' .. QUEUED) > 0 then
        local _, moved = move_all(b, {[QUEUED] = NEW})
        queued = queued + moved
    end
end
if leased + queued > 0 then update_batch_state(b, time) end
return {leased, queued}
