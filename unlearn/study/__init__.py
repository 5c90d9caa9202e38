"""Many runs in one table: python -m unlearn.study."""
