"""What several integration tests leave out because it takes longer than all the rest."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter


@pytest.fixture(scope="module")
def no_pixels():
    """Figures are drawn, but not turned into pixels; forks of this process do likewise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).touch())
        patch.setattr(SummaryWriter, "add_figure", lambda *_, **__: None)
        yield
