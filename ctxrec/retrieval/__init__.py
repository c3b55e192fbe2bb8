"""From a bundle and a request to a slate: scoring, filters, items that came after training, explanation."""
