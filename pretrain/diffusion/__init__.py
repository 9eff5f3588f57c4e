"""The mathematics of diffusion: schedules, targets, weights, samplers, guidance. No models."""
