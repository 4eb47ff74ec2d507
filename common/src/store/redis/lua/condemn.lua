-- ARGV: index, run, what is kept of the failure. Answers as `finish` does.
local index, run = tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('EXISTS', b) == 0 or index >= number(b, 'total') then return 1 end
local is = state(b, index)
if is >= COPIED then return 2 end
local time = now()
local epoch, ends
if is == RUNNING then epoch, ends = lease(b, index) end
local its_run = mark(b, index)
if run < its_run or (epoch and ends > time) then return 1 end
redis.call('HDEL', b .. ':l', index)
redis.call('ZREM', b .. ':r', index)
if is_stopped(number(b, 'control')) then
    move(b, index, is, CANCELLED)
else
    redis.call('HSET', b .. ':f', index, ARGV[4])
    move(b, index, is, FAILED)
end
close(b, time)
return 0
