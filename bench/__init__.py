"""What is measured, and the results with the machine they came from."""
