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
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write_folder


@entry_point("adadistill mirror")
def main(argv: Sequence[str]) -> int:
    """Copy; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    config = mirror_config(arguments)
    config.require_packages()
    if not config.wanted:
        raise MirrorError("say where to: --tensorboard, --wandb PROJECT, or both")
    if not (arguments.run / "metrics.jsonl").is_file():
        raise MirrorError(f"{arguments.run} holds no metrics.jsonl; name the folder of a run")
    for name in config.wanted:
        will_write_folder(arguments.run / name, remedy="copy the run to where it can be")
    return mirror(arguments.run, config, follow=False)


if __name__ == "__main__":
    sys.exit(main())
