"""MLflow: stages write events to a spool, and a separate process delivers them."""
