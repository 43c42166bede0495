"""What is learned: a LightningModule for each training objective."""
