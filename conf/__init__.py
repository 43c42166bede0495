"""What can be run: one config group for each package, composed by Hydra."""
