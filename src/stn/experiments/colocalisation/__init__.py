"""Co-localisation of the object that unlabelled images have in common: Table 5, after appendix A.2 of the paper."""
