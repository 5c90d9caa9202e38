"""`make bench`: prints every ratio; a claim about speed in the docs comes from here. Names choose: ARGS=language."""

import sys

from tests.benchmarks import diffusion, edits, engine, gan, language, muse

BENCHMARKS = {
    "engine": engine.main,
    "language": language.main,
    "edits": edits.main,
    "diffusion": diffusion.main,
    "gan": gan.main,
    "muse": muse.main,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        BENCHMARKS[name]()
