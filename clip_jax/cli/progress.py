"""What a command shows while it works: a bar while it embeds, and no needless warnings."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any


class EmbeddingBar:
    """A context whose value is what `Embedder.progress` wants; shown on terminals only."""

    def __init__(self, console: Any):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = TextColumn("embedding {task.description}"), BarColumn(), MofNCompleteColumn()
        # Elsewhere an empty line would be all that it leaves.
        silent = not console.is_terminal
        self._bar = Progress(*columns, Remaining(), console=console, transient=True, disable=silent)
        self._tasks: dict[str, Any] = {}

    def __enter__(self):
        self._bar.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _show(self, what: str, done: int, total: int | None) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done, total=total)


@contextlib.contextmanager
def ignoring(message: str) -> Iterator[None]:
    """Without warnings whose text the regular expression matches from its start."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message)
        yield
