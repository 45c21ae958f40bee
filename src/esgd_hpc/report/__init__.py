"""What a person looks at after a run: a page, the paper's tables and figures, family trees."""
