-- ARGV: scope (0 expired leases, 1 and an empty queue, 2 everything), grace. Replies the number of tasks that were
-- leased, and queued.
if redis.call('EXISTS', b) == 0 then return {-1, 0} end
local what, time = tonumber(ARGV[2]), now()
local before = time - tonumber(ARGV[3])
local leased, queued = 0, 0
local held = redis.call('HGETALL', b .. ':l')
for at = 1, #held, 2 do
    local ends = tonumber(string.match(held[at + 1], '^%d+|(%d+)|'))
    if what == 2 or ends <= before or (ends > time and not lasts(ends, time)) then
        redis.call('HDEL', b .. ':l', held[at])
        if what ~= 2 then redis.call('HINCRBY', b .. ':x', held[at], 1) end
        move(b, held[at], RUNNING, NEW)
        leased = leased + 1
    end
end
if what > 0 then
    local limit = '+inf'
    if what == 1 then limit = text(before) end
    local function put_back(from, to)
        for _, index in ipairs(redis.call('ZRANGEBYSCORE', b .. ':r', from, to)) do
            redis.call('ZREM', b .. ':r', index)
            move(b, index, RETRY, NEW)
            queued = queued + 1
        end
    end
    put_back('-inf', limit)
    put_back('(' .. text(time + 90000000), '+inf')
    if number(b, 's' .. QUEUED) > 0 then
        local _, moved = move_all(b, {[QUEUED] = NEW})
        queued = queued + moved
    end
end
if leased + queued > 0 then close(b, time) end
return {leased, queued}
