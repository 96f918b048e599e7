"""The page on which a person looks at the groups, checks and corrects them: ``scan review``."""
