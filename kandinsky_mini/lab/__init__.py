"""What the notebooks, the benchmark and `make check` share."""
