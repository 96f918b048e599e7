"""What a person sees of a run: the page, its charts, samples of the clusters."""
