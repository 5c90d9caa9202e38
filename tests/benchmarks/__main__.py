"""`make bench`: prints every ratio; a claim about speed in the docs comes from here."""

from tests.benchmarks.engine import main

if __name__ == "__main__":
    main()
