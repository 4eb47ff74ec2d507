-- ARGV: state from, state to. Replies the state afterwards, or -1 if the batch is unknown.
if redis.call('EXISTS', b) == 0 then return -1 end
local batch_state = number(b, 'state')
if batch_state ~= tonumber(ARGV[2]) then return batch_state end
redis.call('HSET', b, 'state', ARGV[3])
return tonumber(ARGV[3])
