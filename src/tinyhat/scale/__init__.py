"""Beyond one process: a corpus in numbered shards, worked on by Ray's actors or torchrun's ranks."""
