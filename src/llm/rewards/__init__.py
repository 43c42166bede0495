"""Rewards: scores of responses, for training and for choosing among several."""
