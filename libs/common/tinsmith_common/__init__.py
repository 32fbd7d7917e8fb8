"""What the train and the sample service share, and nothing else."""
