-- ARGV: index, owner (token|worker), delay, whether the attempt counts, usage. First reply: 0 rescheduled, 1 stale.
local index, wait = tonumber(ARGV[2]), tonumber(ARGV[4])
if redis.call('EXISTS', b) == 0 or state(b, index) ~= RUNNING then return {1} end
local worker = owned(b, index, ARGV[3])
if not worker then return {1} end
local time = now()
redis.call('HDEL', b .. ':l', index)
spend(b, 6)
share(b, worker, nil, 6)
local run, attempts = mark(b, index)
if ARGV[5] == '1' then
    attempts = attempts + 1
    redis.call('HSET', b .. ':m', index, run .. '|' .. attempts)
end
if wait == 0 then
    move(b, index, RUNNING, NEW)
else
    redis.call('ZADD', b .. ':r', text(time + wait), index)
    move(b, index, RUNNING, RETRY)
end
close(b, time)
return {0, attempts}
