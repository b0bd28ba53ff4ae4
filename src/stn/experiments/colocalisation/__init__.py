"""Co-localisation of what unlabelled images have in common: Table 5, after appendix A.2 of the paper."""
