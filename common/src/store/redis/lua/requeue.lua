-- ARGV: run, indexes. Replies the number of requeued tasks; -1 if the batch is unknown, -2 if it was stopped.
if redis.call('EXISTS', b) == 0 then return -1 end
if is_stopped(number(b, 'control')) then return -2 end
local run, requeued = tonumber(ARGV[2]), 0
for at = 3, #ARGV do
    local index = tonumber(ARGV[at])
    if state(b, index) == FAILED then
        redis.call('HDEL', b .. ':f', index)
        redis.call('HDEL', b .. ':x', index)
        redis.call('HSET', b .. ':m', index, run .. '|0')
        move(b, index, FAILED, NEW)
        requeued = requeued + 1
    end
end
if requeued > 0 then
    if number(b, 'run') < run then redis.call('HSET', b, 'run', run) end
    close(b, now())
end
return requeued
