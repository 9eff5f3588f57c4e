"""What a training step costs against transformers: `make bench-vlp`."""
