"""Estimates of a run before it trains, and matching of runs."""
