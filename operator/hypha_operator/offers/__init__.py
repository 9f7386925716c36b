"""What a worker may sell: whether its executors are valid, whether their jobs start, and how large they may be."""
