-- ARGV: index, owner (token|worker), state, encoded failure, usage. Replies: 0 counted, 1 stale, 2 ended before.
local index, to = tonumber(ARGV[2]), tonumber(ARGV[4])
if index >= number(b, 'total') then return 1 end
local from = task_state(b, index)
-- No result of a stopped batch counts.
if from == CANCELLED and to ~= CANCELLED then return 1 end
if from >= COPIED then return 2 end
if from ~= RUNNING then return 1 end
local worker = own_lease(b, index, ARGV[3])
if not worker then return 1 end
redis.call('HDEL', b .. KEY_SUFFIXES.leases, index)
if to == FAILED then redis.call('HSET', b .. KEY_SUFFIXES.failures, index, ARGV[5]) end
move_task(b, index, from, to)
add_usage(b, 6)
add_worker_stats(b, worker, to, 6)
record_slow_task(b, index, worker, 6)
update_batch_state(b, now())
return 0
