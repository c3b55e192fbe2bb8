"""The last step of retrieval: diversity, caps, freshness and rules of the list that a user sees."""
