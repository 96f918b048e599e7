"""What all training loops share: the state, the step, the learning rate, the optimizers."""
