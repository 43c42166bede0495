"""Whole networks, assembled from the parts in nn."""
