"""Other forms of a model: what leaves tinyhat, checked against the original before it appears."""
