-- ARGV: index, run, worker, TTL. First reply: 0 claimed, 1 already owned, 2 ended, 3 cancelled, 4 held by another, 5
-- stale run, 6 paused, 7 unknown.
local index, run, worker = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local found = redis.call('HMGET', b, 'control', 'total')
if not found[1] or index >= tonumber(found[2]) then return {7} end
local control = tonumber(found[1])
local is = state(b, index)
if is == CANCELLED then return {3} end
if is >= COPIED then return {2} end
local its_run, attempts = mark(b, index)
if run < its_run then return {5} end
local time = now()
local epoch, ends, holder
if is == RUNNING then epoch, ends, holder = lease(b, index) end
local live = epoch and lasts(ends, time)
if live then
    if holder ~= worker then return {4, text(ends)} end
    hold(b, index, epoch, math.max(ends, time + tonumber(ARGV[5])), worker)
    return {1, text(epoch), attempts}
end
if control == C_PAUSED then
    redis.call('HDEL', b .. ':l', index)
    redis.call('ZREM', b .. ':r', index)
    move(b, index, is, NEW)
    return {6}
end
if epoch then redis.call('HINCRBY', b .. ':x', index, 1) end
local losses = tonumber(redis.call('HGET', b .. ':x', index) or '0')
epoch = next_token(redis.call('HGET', b, 'epoch'))
redis.call('HSET', b, 'epoch', text(epoch))
hold(b, index, epoch, time + tonumber(ARGV[5]), worker)
if is == RETRY then redis.call('ZREM', b .. ':r', index) end
-- A start neither ends a batch nor reopens an ended one.
if is ~= RUNNING then move(b, index, is, RUNNING) end
return {0, text(epoch), attempts, losses}
