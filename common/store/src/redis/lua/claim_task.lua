-- ARGV: index, run, worker, TTL, number and mark of the task's chunk (empty: any). First reply: 0 claimed, 1 already
-- owned, 2 ended, 3 cancelled, 4 held by another, 5 stale run, 6 paused, 7 unknown, 8 not in the plan.
local index, run, worker = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local found = redis.call('HMGET', b, 'state', 'total', 'last_token')
if not found[1] then return {7} end
if ARGV[6] ~= '' then
    local key, at = b .. KEY_SUFFIXES.chunk_marks, 4 * tonumber(ARGV[6])
    local mark = redis.call('GETRANGE', key, at, at + 3)
    -- Chunks of an earlier program have no mark.
    local is_marked = mark ~= '\0\0\0\0' and (mark ~= '' or redis.call('EXISTS', key) == 1)
    if is_marked and mark ~= struct.pack('>I4', tonumber(ARGV[7])) then return {8} end
end
if index >= tonumber(found[2]) then return {7} end
local batch_state = tonumber(found[1])
local from = task_state(b, index)
if from == CANCELLED then return {3} end
if from >= COPIED then return {2} end
local task_run, attempts = run_and_attempts(b, index)
if run < task_run then return {5} end
local time = now()
local token, expires_at, holder
if from == RUNNING then token, expires_at, holder = read_lease(b, index) end
local is_held = token and is_unexpired(expires_at, time)
if is_held then
    if holder ~= worker then return {4, integer_text(expires_at)} end
    set_lease(b, index, token, math.max(expires_at, time + tonumber(ARGV[5])), worker)
    return {1, integer_text(token), attempts}
end
if batch_state == BATCH_PAUSED then
    redis.call('HDEL', b .. KEY_SUFFIXES.leases, index)
    redis.call('ZREM', b .. KEY_SUFFIXES.retries, index)
    move_task(b, index, from, NEW)
    return {6}
end
if token then redis.call('HINCRBY', b .. KEY_SUFFIXES.losses, index, 1) end
local losses = tonumber(redis.call('HGET', b .. KEY_SUFFIXES.losses, index) or '0')
token = next_token(found[3])
redis.call('HSET', b, 'last_token', integer_text(token))
set_lease(b, index, token, time + tonumber(ARGV[5]), worker)
if from == RETRY then redis.call('ZREM', b .. KEY_SUFFIXES.retries, index) end
-- A claim neither ends a batch nor reopens an ended one.
if from ~= RUNNING then move_task(b, index, from, RUNNING) end
return {0, integer_text(token), attempts, losses}
