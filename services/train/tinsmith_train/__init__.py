"""The train service: forward_backward, optim_step and checkpoints behind the Tinker API."""
