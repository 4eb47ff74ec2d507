return stop_batch(b, BATCH_CANCELLED, now()) or -1
