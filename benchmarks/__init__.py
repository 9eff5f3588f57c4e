"""Benchmarks: each prints ratios that were measured in one run, as a table and as JSON lines."""
