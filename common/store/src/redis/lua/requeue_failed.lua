-- ARGV: run, indexes. Replies the number of requeued tasks; -1 if the batch is unknown, -2 if it was stopped.
if redis.call('EXISTS', b) == 0 then return -1 end
if is_stopped(number(b, 'state')) then return -2 end
local run, requeued = tonumber(ARGV[2]), 0
for at = 3, #ARGV do
    local index = tonumber(ARGV[at])
    if task_state(b, index) == FAILED then
        redis.call('HDEL', b .. KEY_SUFFIXES.failures, index)
        redis.call('HDEL', b .. KEY_SUFFIXES.losses, index)
        redis.call('HSET', b .. KEY_SUFFIXES.attempts, index, run .. '|0')
        move_task(b, index, FAILED, NEW)
        requeued = requeued + 1
    end
end
if requeued > 0 then
    if number(b, 'run') < run then redis.call('HSET', b, 'run', run) end
    update_batch_state(b, now())
end
return requeued
