"""From a kill to the next step, and from submitting to the first, beside torchrun and Ray Train."""
