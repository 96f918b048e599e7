"""Groups as a person sees them: their numbers, names and corrections, and the one function that applies these."""
