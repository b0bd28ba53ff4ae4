"""Classification of digits in three dimensions: Table 6, after appendix A.3 of the paper."""
