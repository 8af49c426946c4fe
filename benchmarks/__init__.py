"""Speed, side by side: ``make bench``, or ``python -m benchmarks``; what it found: RESULTS.md."""
