"""What watches a training run: progress, samples, throughput, gradients, checkpoints."""
