"""The World Factbook as questions and answers."""
