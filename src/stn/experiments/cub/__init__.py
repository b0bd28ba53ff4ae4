"""Classification of birds (CUB-200-2011): Table 3 of the paper."""
