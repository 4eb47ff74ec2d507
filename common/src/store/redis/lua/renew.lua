-- ARGV: index, epoch, lease. The first answer: 0 held, 1 lost, 2 stop.
local index, epoch = tonumber(ARGV[2]), tonumber(ARGV[3])
local its, ends, worker = lease(b, index)
if its ~= epoch or state(b, index) ~= RUNNING then return {1} end
ends = math.max(ends, now() + tonumber(ARGV[4]))
hold(b, index, its, ends, worker)
if is_stopped(number(b, 'control')) then return {2} end
return {0, text(ends)}
