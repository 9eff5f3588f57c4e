"""`make reproduce-diffusion` and `make bench-diffusion`: what latent diffusion learns and costs."""
