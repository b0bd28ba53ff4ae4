"""Adding two MNIST digits: Table 4 of the paper."""
