-- ARGV: per ticket its index and run.
if redis.call('EXISTS', b) == 0 then return 0 end
local marked = redis.call('EXISTS', b .. ':m') == 1
local total, moved = number(b, 'total'), 0
for at = 2, #ARGV, 2 do
    local index = tonumber(ARGV[at])
    if index < total and state(b, index) == NEW then
        local run = 0
        if marked then run = mark(b, index) end
        if run == tonumber(ARGV[at + 1]) then
            redis.call('BITFIELD', b .. ':s', 'SET', 'u4', '#' .. index, QUEUED)
            moved = moved + 1
        end
    end
end
if moved > 0 then
    redis.call('HINCRBY', b, 's' .. NEW, -moved)
    redis.call('HINCRBY', b, 's' .. QUEUED, moved)
end
return 1
