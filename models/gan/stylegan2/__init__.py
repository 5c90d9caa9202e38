"""StyleGAN2 in plain PyTorch, with the state-dict names of the public weights."""
