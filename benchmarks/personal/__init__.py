"""`make reproduce-dreambooth` and `make reproduce-control`: what fine-tuning does, in tables."""
