"""Types of command-line options, with their help text.

With plain types, tyro would print Python's `None` and `False` as defaults.
"""

from pathlib import Path
from typing import Annotated

import tyro

Int = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Float = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
Str = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]

Device = Annotated[str, tyro.conf.arg(help="auto (a GPU if there is one), cpu, or cuda.")]
Workers = Annotated[Int, tyro.conf.arg(help="Processes; by default one per usable core.")]
Json = Annotated[
    Flag, tyro.conf.arg(help="Print results as JSON, not as tables; progress is on standard error.")
]
