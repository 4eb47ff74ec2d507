-- KEYS: the scope, the index of scopes. ARGV: the scope's name, its TTL, then per tag its name, its buckets and its
-- encoded value.
cache_tags(b, KEYS[2], ARGV[2], ARGV[3], 4, #ARGV)
return 1
