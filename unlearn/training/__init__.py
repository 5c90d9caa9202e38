"""The training loop: phases, losses, gradients, callbacks."""
