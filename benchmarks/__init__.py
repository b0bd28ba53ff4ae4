"""Benchmarks against other implementations: `make bench`, or `python -m benchmarks --only distortion,transformer`."""

from stn.environment import settle

settle()  # before torch and matplotlib are loaded
