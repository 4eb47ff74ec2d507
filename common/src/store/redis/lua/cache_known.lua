-- The tags of a scope are in a hash until that is as large as is packed well, then in 16 more, then in 256 more.
-- ARGV: for each tag its name, and its bucket of 16 and of 256.
local known = {}
for at = 2, #ARGV, 3 do
    local tag = ARGV[at]
    known[#known + 1] = redis.call('HGET', b, tag) or redis.call('HGET', b .. ':' .. ARGV[at + 1], tag)
        or redis.call('HGET', b .. ':' .. ARGV[at + 2], tag) or ''
end
return known
