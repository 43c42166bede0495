"""How several devices divide a training step: copies of the model, or shares of it."""
