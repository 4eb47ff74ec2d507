-- ARGV: index, owner (token|worker), TTL. First reply: 0 held, 1 lost, 2 batch stopped.
local index = tonumber(ARGV[2])
local worker, its, ends = owned(b, index, ARGV[3])
if not worker or state(b, index) ~= RUNNING then
    if is_stopped(number(b, 'control')) then return {2} end
    return {1}
end
ends = math.max(ends, now() + tonumber(ARGV[4]))
hold(b, index, its, ends, worker)
return {0, text(ends)}
