"""`make accept`: the long checks, run through the real command line, with their figures.

``python -m tests.acceptance taming kills`` runs some of them by name. The exit code is 1 where a figure is missed.
They are no tests: they take hours, and stand here because the top level of the project is fixed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.acceptance import diffusion, engine, flow, gan, language
from tests.acceptance.figures import Check

CHECKS: dict[str, Callable[[Check, Path], None]] = {
    check.__name__: check
    for check in (
        engine.start,
        engine.demo,
        flow.taming,
        flow.category,
        flow.debias,
        language.language,
        language.restor,
        diffusion.diffusion_text,
        diffusion.diffusion_class,
        diffusion.diffusion_key,
        diffusion.diffusion_folders,
        gan.gan_faces,
        gan.gan_digits,
        gan.gan_several,
        gan.gan_reinversion,
        engine.kills,
    )
}


def main(wanted: list[str]) -> int:
    """Run the checks and say what was missed."""
    check = Check()
    for name in wanted or CHECKS:
        print(f"{name}: {CHECKS[name].__doc__}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            CHECKS[name](check, Path(folder))
    print(f"{len(check.missed)} figures missed" + "".join(f"\n  {what}" for what in check.missed))
    return 1 if check.missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
