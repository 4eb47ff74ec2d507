-- ARGV: minimum number of segments and of tasks. First reply: 0 unknown, 1 complete, 2 fewer, with the actual numbers.
if redis.call('EXISTS', b) == 0 then return {0} end
local time = now()
if redis.call('HEXISTS', b, 'planned_at') == 0 then
    local segments, tasks = redis.call('HLEN', b .. KEY_SUFFIXES.repositories), number(b, 'total')
    if segments < tonumber(ARGV[2]) or tasks < tonumber(ARGV[3]) then return {2, segments, tasks} end
    redis.call('HSET', b, 'planned_at', integer_text(time))
end
update_batch_state(b, time)
return {1}
