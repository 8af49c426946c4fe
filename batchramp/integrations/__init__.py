"""A Plan inside other people's training loops. Each module needs its framework, and says so."""
