"""A/B tests of published versions: exposures, credit of events, statistics."""
