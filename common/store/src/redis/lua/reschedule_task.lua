-- ARGV: index, owner (token|worker), delay, whether the attempt counts, usage. First reply: 0 rescheduled, 1 stale.
local index, wait = tonumber(ARGV[2]), tonumber(ARGV[4])
if redis.call('EXISTS', b) == 0 or task_state(b, index) ~= RUNNING then return {1} end
local worker = own_lease(b, index, ARGV[3])
if not worker then return {1} end
local time = now()
redis.call('HDEL', b .. KEY_SUFFIXES.leases, index)
add_usage(b, 6)
add_worker_stats(b, worker, nil, 6)
local run, attempts = run_and_attempts(b, index)
if ARGV[5] == '1' then
    attempts = attempts + 1
    redis.call('HSET', b .. KEY_SUFFIXES.attempts, index, run .. '|' .. attempts)
end
if wait == 0 then
    move_task(b, index, RUNNING, NEW)
else
    redis.call('ZADD', b .. KEY_SUFFIXES.retries, integer_text(time + wait), index)
    move_task(b, index, RUNNING, RETRY)
end
update_batch_state(b, time)
return {0, attempts}
