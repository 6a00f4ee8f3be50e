"""`vla_rl.export` on a run's checkpoints."""

import pytest

from tests.helpers import toy_fit
from vla_rl import export
from vla_rl.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    toy_fit.run(folder, "iterations=2", "callbacks.checkpoint.keep=3")
    return folder


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_every_checkpoint_holds_its_own_policy(run, tmp_path, capsys):
    outs = {name: tmp_path / name for name in ("iteration-0", "iteration-1", "last")}
    for name, out in outs.items():
        export.main([f"checkpoint={run / 'checkpoints' / f'{name}.ckpt'}", f"out={out}"])
    assert f"policy {outs['last']}" in capsys.readouterr().out
    assert weights(outs["last"]) == weights(run / "policy")
    assert len({weights(out) for out in outs.values()}) == 3


def test_what_is_refused(run, tmp_path):
    last = run / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match="exists; give a new folder: out=.*-2"):
        export.export_policy(last, tmp_path)
    with pytest.raises(UserError, match="cannot be read .*No such file"):
        export.export_policy(run / "checkpoints" / "iteration-9.ckpt", tmp_path / "out")
    elsewhere = tmp_path / "checkpoints" / "last.ckpt"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(last.read_bytes())
    with pytest.raises(UserError, match="is in no run: missing .*config.yaml"):
        export.export_policy(elsewhere, tmp_path / "out")
    with pytest.raises(UserError, match="missing out=: checkpoint=.*best.ckpt out=exported"):
        export.main([f"checkpoint={last}"])
    with pytest.raises(UserError, match="unknown key 'adaptr'; did you mean 'adapter'"):
        export.main([f"checkpoint={last}", "adaptr=x"])
    assert not (tmp_path / "out").exists()
