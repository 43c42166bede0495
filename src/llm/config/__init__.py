"""Configuration: composing with Hydra, checking, building objects and fingerprints."""
