"""Two-layer models, tokenizers and corpora built in memory: no test touches a network."""
