"""Documents in: reading files and corpora, label spaces, splits, checks, tokens and packs."""
