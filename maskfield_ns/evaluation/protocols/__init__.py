"""Benchmark protocols: decision rules and metrics as pure functions, label loaders, and the scorers that join them."""
