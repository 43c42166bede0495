"""Strategies for several devices, and how each of them divides a model."""
