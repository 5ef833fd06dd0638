"""Published benchmarks of what a vision-language model can do in general, read from copies as they are published."""
