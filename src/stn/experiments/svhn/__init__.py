"""Recognition of house numbers (SVHN): Table 2 of the paper."""
