return stop(b, C_CANCELLED, now()) or -1
