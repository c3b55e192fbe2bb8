"""The two towers, their backbones and losses: tensors only, no process group."""
