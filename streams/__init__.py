"""The runtime every process shares. It knows nothing of what happens to an image."""
