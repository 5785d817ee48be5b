"""What composes kernels and loaders: backbones, heads, class centres, training loop, checkpoints, evaluation."""
