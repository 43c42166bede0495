"""What stands between Hydra and the constructors: composition, checks, building, fingerprints."""
