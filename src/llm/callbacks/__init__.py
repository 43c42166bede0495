"""Lightning callbacks: progress, samples, throughput, gradients, checkpoints."""
