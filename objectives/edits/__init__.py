"""Edits: methods that compute the unlearned model from others, without a loop of their own."""
