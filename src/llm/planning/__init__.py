"""Estimates of a run before it trains: parameters, FLOPs, memory and time; and matching of runs."""
