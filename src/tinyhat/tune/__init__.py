"""How scores become labels: thresholds fitted on dev logits, and an honest dev figure by cross-fitting."""
