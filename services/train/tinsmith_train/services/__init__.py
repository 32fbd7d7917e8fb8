"""What the train service does, without HTTP: sessions, models, training, weights, runs."""
