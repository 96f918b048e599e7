"""Device and precision, several processes, CUDA graphs."""
