"""`vla_rl.export` on a run's checkpoints."""

import json

import pytest
import torch

from tests.helpers import toy_fit
from vla_rl import export
from vla_rl.config.compose import compose
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
        export.main([f"checkpoint={last}", f"out={tmp_path}"])
    with pytest.raises(UserError, match="^cannot write out=/dev/null/x: Not a directory; name another folder: out="):
        export.main(["checkpoint=owner/not_downloaded", "adapter=missing", "out=/dev/null/x"])
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["state_dict"].pop("policy.head.weight"), ": tensor 'head.weight' is missing"),
        (lambda content: content["state_dict"].update({"policy.odd": torch.ones(1)}), ": tensor 'odd' is not expected"),
        (
            lambda content: content["state_dict"].update({"policy.head.bias": torch.ones(1)}),
            r".* has shape \[1\], expe",
        ),
        (lambda content: content.pop("state_dict"), r" cannot be read \(it has no state_dict\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_the_run(run, tmp_path, change, message):
    path = run / "checkpoints" / "iteration-7.ckpt"
    content = torch.load(run / "checkpoints" / "iteration-1.ckpt", weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(UserError, match=f"{path}{message}"):
        export.main([f"checkpoint={path}", f"out={tmp_path / 'out'}"])
    path.unlink()
    assert not (tmp_path / "out").exists()


class Hub:
    """Stands in for the hub: keeps what it is asked to do."""

    def __init__(self):
        self.calls = []

    def create_repo(self, name, **options):
        self.calls.append((name, options))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(
            (repo_id, {file.name: file.read_bytes() for file in folder_path.rglob("*") if file.is_file()})
        )


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    return hub


def test_a_dry_run_says_what_would_go_and_uploads_nothing(run, hub, capsys):
    (run / "videos" / "heldout").mkdir(parents=True, exist_ok=True)
    (run / "videos" / "heldout" / "before.mp4").write_bytes(b"video")
    last = run / "checkpoints" / "last.ckpt"
    export.main([f"checkpoint={last}", "push=me/mine", "dry_run=true"])
    printed = capsys.readouterr().out
    assert "would be uploaded to me/mine (private if it is new):" in printed
    assert hub.calls == []
    listed, _, card = printed.partition("---\n")
    assert all(name in listed for name in ("model.safetensors", "README.md", "videos/heldout/before.mp4"))
    after = json.loads((run / "summary.json").read_text())["success_after"]["sampled"]
    assert f"| {after['rate']:.2f} [{after['wilson_low']:.2f}, {after['wilson_high']:.2f}] | 4 |" in card
    assert "- [videos/heldout/before.mp4](videos/heldout/before.mp4)" in card
    assert "| mujoco | " in card
    low, high = compose([f"conf={run / 'config.yaml'}"]).rollout.heldout_init_states
    assert f"| held-out initial states | [{low}, {high}) |" in card
    assert "python -m vla_rl.evaluate conf=pcm_object_tiny checkpoint=me/mine" in card


def test_a_push_uploads_what_was_exported(run, hub, tmp_path, capsys):
    out = tmp_path / "out"
    export.main([f"checkpoint={run / 'checkpoints' / 'iteration-0.ckpt'}", f"out={out}", "push=me/mine"])
    (made, uploaded) = hub.calls
    assert made == ("me/mine", {"private": True, "exist_ok": True})
    assert uploaded[0] == "me/mine"
    assert uploaded[1]["model.safetensors"] == weights(out)
    assert b"checkpoint `iteration-0.ckpt`" in uploaded[1]["README.md"]
    assert "files to https://hub/me/mine" in capsys.readouterr().out
    export.main([f"checkpoint={run / 'checkpoints' / 'last.ckpt'}", "push=me/mine", "private=false"])
    assert hub.calls[2][1]["private"] is False


def test_without_push_nothing_goes(run, hub, tmp_path):
    export.main([f"checkpoint={run / 'checkpoints' / 'last.ckpt'}", f"out={tmp_path / 'out'}"])
    assert hub.calls == []
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["push=mine"], "push must name a repository on the Hugging Face hub, got 'mine': push=OWNER/NAME"),
        (["push=a/b/c"], "push must name a repository on the Hugging Face hub, got 'a/b/c'"),
        (["out=x", "dry_run=true"], "nothing is uploaded without push=OWNER/NAME: dry_run=false"),
        (["out=x", "private=false"], "nothing is uploaded without push=OWNER/NAME: private=true"),
        (
            ["push=me/mine", "checkpoint=a/b/c.ckpt"],
            "the model card is made from the run, and there is none: missing a",
        ),
    ],
)
def test_what_push_refuses(options, line, run, hub):
    with pytest.raises(UserError) as refused:
        export.main([f"checkpoint={run / 'checkpoints' / 'last.ckpt'}", *options])
    assert str(refused.value).startswith(line)
    assert hub.calls == []


def test_a_hub_that_refuses_is_one_line(run, hub, monkeypatch):
    def refuse(name, **_):
        raise OSError("401 Client Error")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(UserError, match="could not be uploaded to me/mine .OSError: 401 Client Error.: set HF_TOKEN"):
        export.main([f"checkpoint={run / 'checkpoints' / 'last.ckpt'}", "push=me/mine"])
