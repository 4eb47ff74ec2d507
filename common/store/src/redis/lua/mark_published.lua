-- ARGV: per task its index and run.
if redis.call('EXISTS', b) == 0 then return 0 end
local has_runs = redis.call('EXISTS', b .. KEY_SUFFIXES.attempts) == 1
local total, moved = number(b, 'total'), 0
for at = 2, #ARGV, 2 do
    local index = tonumber(ARGV[at])
    if index < total and task_state(b, index) == NEW then
        local run = 0
        if has_runs then run = run_and_attempts(b, index) end
        if run == tonumber(ARGV[at + 1]) then
            redis.call('BITFIELD', b .. KEY_SUFFIXES.states, 'SET', 'u4', '#' .. index, QUEUED)
            moved = moved + 1
        end
    end
end
if moved > 0 then
    redis.call('HINCRBY', b, 's' .. NEW, -moved)
    redis.call('HINCRBY', b, 's' .. QUEUED, moved)
end
return 1
