-- ARGV: state from, state to. Replies the state afterwards, or -1 if the batch is unknown.
if redis.call('EXISTS', b) == 0 then return -1 end
local control = number(b, 'control')
if control ~= tonumber(ARGV[2]) then return control end
redis.call('HSET', b, 'control', ARGV[3])
return tonumber(ARGV[3])
