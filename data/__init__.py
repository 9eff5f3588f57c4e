"""Shards in, batches out. Knows nothing of models; imports neither ray nor deepspeed."""
