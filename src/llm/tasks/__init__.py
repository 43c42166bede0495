"""Training objectives, each a LightningModule."""
