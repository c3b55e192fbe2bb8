"""Training with DeepSpeed on Ray Train: driver, workers, phases, checkpoints, faults and the capacity planner."""
