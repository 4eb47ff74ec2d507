-- ARGV: index, owner (token|worker), state, encoded failure, usage. Replies: 0 counted, 1 stale, 2 ended before.
local index, to = tonumber(ARGV[2]), tonumber(ARGV[4])
if index >= number(b, 'total') then return 1 end
local is = state(b, index)
-- No result of a stopped batch counts.
if is == CANCELLED and to ~= CANCELLED then return 1 end
if is >= COPIED then return 2 end
if is ~= RUNNING then return 1 end
local worker = owned(b, index, ARGV[3])
if not worker then return 1 end
redis.call('HDEL', b .. ':l', index)
if to == FAILED then redis.call('HSET', b .. ':f', index, ARGV[5]) end
move(b, index, is, to)
spend(b, 6)
share(b, worker, to, 6)
slow(b, index, worker, 6)
close(b, now())
return 0
