"""What a person looks at after a run: the report, the model card, the table in the terminal."""
