"""Rewards: what scores a response, for training and for choosing among several."""
