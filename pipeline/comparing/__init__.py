"""Two runs beside each other: revisions of this project, or other projects."""
