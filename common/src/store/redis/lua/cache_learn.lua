-- KEYS: the scope, the index of scopes. ARGV: the scope's name, how long it is kept, then for each tag its name, its
-- buckets and what is known.
learn_tags(b, KEYS[2], ARGV[2], ARGV[3], 4, #ARGV)
return 1
