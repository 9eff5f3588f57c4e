"""The only folder that imports ray or deepspeed: placing, running, surviving."""
