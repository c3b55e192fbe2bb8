"""The training of the second stage: on training events that a retriever has not seen, by DeepSpeed on Ray Train."""
