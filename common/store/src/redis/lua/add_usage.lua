-- KEYS: the batch, the request id. ARGV: usage.
if redis.call('EXISTS', b) == 0 then return 0 end
if is_first(KEYS[2]) then add_usage(b, 2) end
return 1
