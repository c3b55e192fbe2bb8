"""From new data to the next served version: rounds of preparing, training, comparing, publishing and watching."""
