"""What a run can do without: figures, videos, TensorBoard, links. Where one fails, there is a warning and no end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities import rank_zero_warn

from vla_rl.errors import RunError, UserError

_warned: set[str] = set()  # what has failed in this process


@contextmanager
def extra(what: str) -> Iterator[None]:
    """An exception inside becomes a warning, the first time that `what` fails.

    Example:
        >>> with extra("the figure success"):
        ...     figure.savefig(path)
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as e:
        if what not in _warned:
            _warned.add(what)
            cause = e.__cause__ or e
            rank_zero_warn(f"{what} failed, and the run goes on without: {type(cause).__name__}: {cause}")
