"""`adadistill mirror RUN`: copies of a run's metrics made again, or for the first time.

    adadistill mirror RUN --tensorboard
    adadistill mirror RUN --wandb PROJECT [--wandb-entity NAME] [--wandb-mode offline]

Exit codes: 0 copied; 1 a copy is not complete; 2 there is no such run, or a package is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from adadistill.core.metrics_mirror import MirrorError
from adadistill.core.metrics_mirror.follow import build_parser, mirror, mirror_config


def main(argv: Sequence[str] | None = None) -> int:
    """Copy; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        config = mirror_config(arguments)
        config.require_packages()
        if not config.wanted:
            raise MirrorError("say where to: --tensorboard, --wandb PROJECT, or both")
        if not (arguments.run / "metrics.jsonl").is_file():
            raise MirrorError(f"{arguments.run} holds no metrics.jsonl; name the folder of a run")
    except (MirrorError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return mirror(arguments.run, config, follow=False)


if __name__ == "__main__":
    sys.exit(main())
