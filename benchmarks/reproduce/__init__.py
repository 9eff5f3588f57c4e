"""What each pretraining objective is good for: `make reproduce-vlp`."""
