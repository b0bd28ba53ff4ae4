"""Classification of distorted MNIST: Table 1 of the paper, and two of ours: Tables 7 and 8."""
