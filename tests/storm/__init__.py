"""The fault suite: a stream of uploads under a seeded schedule of faults, and checks of every guarantee."""
