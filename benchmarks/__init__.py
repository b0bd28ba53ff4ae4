"""What is timed side by side: `make bench`, or `python -m benchmarks --only distortion,transformer`."""
