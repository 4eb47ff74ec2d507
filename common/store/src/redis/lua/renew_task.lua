-- ARGV: index, owner (token|worker), TTL. First reply: 0 held, 1 lost, 2 batch stopped.
local index = tonumber(ARGV[2])
local worker, token, expires_at = own_lease(b, index, ARGV[3])
if not worker or task_state(b, index) ~= RUNNING then
    if is_stopped(number(b, 'state')) then return {2} end
    return {1}
end
expires_at = math.max(expires_at, now() + tonumber(ARGV[4]))
set_lease(b, index, token, expires_at, worker)
return {0, integer_text(expires_at)}
