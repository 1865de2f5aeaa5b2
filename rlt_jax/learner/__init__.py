"""From a batch to new weights: objective, gradients layer by layer, the optimizer, the reference."""
