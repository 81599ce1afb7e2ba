"""The fault suite: a stream of uploads under a seeded storm of faults, and books that must balance."""
