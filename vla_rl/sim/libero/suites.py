"""The one place that boots LIBERO: its config file, its assets, and the facts of its task suites.

Suite facts (names, instructions, files, horizons) are read from the installed package without importing it, so that a
config can be checked in milliseconds, before anything is built. Only `boot` imports LIBERO, robosuite and MuJoCo.
"""

from __future__ import annotations

import codecs
import functools
import importlib.util
import os
import pickle
import re
import sys
import tempfile
import types
import warnings
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from vla_rl.errors import UserError, did_you_mean
from vla_rl.sim.cache import cache_dir, make_folder
from vla_rl.sim.gl import check_gl
from vla_rl.sim.libero import bddl
from vla_rl.sim.libero.task_files import TaskFiles, folder_tasks, is_folder, is_pro, pro_base, pro_tasks

SUITES = {
    "object": "libero_object",
    "spatial": "libero_spatial",
    "goal": "libero_goal",
    "10": "libero_10",
    "90": "libero_90",
}
# Control steps after which the published evaluations of these suites give an episode up.
HORIZONS = {"object": 280, "spatial": 220, "goal": 300, "10": 520, "90": 400}
FOLDER_HORIZON = 300  # of tasks that nobody has published an evaluation of
STANDIN_SUITES = ("object", "spatial", "goal")  # whose scenes `vla_rl.sim.libero.standin.write` writes
ASSET_FOLDERS = ("scenes", "stable_hope_objects", "stable_scanned_objects", "textures")


# ------------------------------------------------------------------------------------------------------ suite facts


def _package_dir() -> Path:
    """`libero/libero` of the installed wheel, found without importing it (importing asks a question on stdin)."""
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("LIBERO is not installed; needed: hf-libero 0.1.4; fix: pip install --no-deps hf-libero==0.1.4")
    package = Path(spec.submodule_search_locations[0])
    installed = _installed_package()
    if installed is not None and not package.samefile(installed):
        raise UserError(
            f"the folder {package} hides the LIBERO that is installed in {installed}: start from another folder, rename"
            " it, or run python -P -m vla_rl.fit ..."
        )
    return package / "libero"


def _installed_package() -> Path | None:
    """Where the wheel hf-libero lies; None where LIBERO was installed in another way."""
    try:
        folder = Path(str(metadata.distribution("hf-libero").locate_file("libero")))
    except metadata.PackageNotFoundError:
        return None
    return folder if folder.is_dir() else None


@functools.cache
def _task_map() -> dict[str, list[str]]:
    path = _package_dir() / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("_libero_suite_task_map", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.libero_task_map


def check_suite(suite: str) -> None:
    """Raise UserError unless `suite` is one of `SUITES`, `pro:` and one of LIBERO-Pro's, or a folder of BDDL files."""
    if suite in SUITES:
        return
    if is_pro(suite) or is_folder(suite):
        _tasks(suite)
        return
    name = str(suite).removeprefix("libero_")
    hint, example = did_you_mean(name, SUITES), "object"
    for base in SUITES:
        if name.startswith(f"{base}_"):  # libero_goal_swap, libero_object_with_mug
            hint, example = f": variants of suite '{base}' are LIBERO-Pro's.", f"pro:{name}"
    raise UserError(
        f"no LIBERO suite {suite!r}{hint} Allowed: {', '.join(SUITES)}, pro: and a suite of LIBERO-Pro, or a folder of "
        f".bddl files; e.g. sim.suite={example}"
    )


def _tasks(suite: str) -> Sequence[TaskFiles]:
    if suite not in SUITES:
        return pro_tasks(suite, _own_names) if is_pro(suite) else folder_tasks(suite)
    bddls, inits = (_package_dir() / kind / SUITES[suite] for kind in ("bddl_files", "init_files"))
    return [TaskFiles(name, bddls / f"{name}.bddl", inits / f"{name}.pruned_init") for name in _own_names(suite)]


def _own_names(suite: str) -> list[str]:
    """In LIBERO's order; none where LIBERO has no such suite."""
    return _task_map().get(SUITES.get(suite, ""), [])


def check_task(suite: str, task: int | str) -> None:
    """Raise UserError unless `task` is an index of the suite."""
    check_suite(suite)
    count = len(_tasks(suite))
    if isinstance(task, bool) or not isinstance(task, (int, np.integer)) or not 0 <= task < count:
        raise UserError(f"suite {suite!r} has no task {task!r}; allowed: 0..{count - 1}; e.g. sim.tasks=[0,5]")


def task_index(suite: str, task: int | str) -> int:
    """`task`, an index of the suite; UserError otherwise."""
    check_task(suite, task)
    return int(task)


def task_names(suite: str) -> list[str]:
    """The suite's tasks: index = task. LIBERO's own in its default order (task order 0), others by name."""
    check_suite(suite)
    return [task.name for task in _tasks(suite)]


def language(suite: str, task: int) -> str:
    """The instruction: of LIBERO's own tasks as its benchmark gives it, from the file's name less the scene's prefix;
    of others as the file says it.

    LIBERO's files word some otherwise than their names ("pick the soup", "pick up the soup"), and policies know the
    latter. A file that says what one of LIBERO's says has the instruction of LIBERO's task.
    """
    check_task(suite, task)
    if suite in SUITES:
        return _instruction_in(task_names(suite)[task])
    said = problem(suite, task).instruction
    return _liberos_words().get(said, said)


def _instruction_in(name: str) -> str:
    return re.sub(r"^[A-Z_]*SCENE\d+_", "", name).replace("_", " ")


@functools.cache
def _liberos_words() -> dict[str, str]:
    """The instruction of LIBERO's task by what its file says."""
    tasks = (task for suite in SUITES for task in _tasks(suite))
    return {bddl.read_problem(task.bddl).instruction: _instruction_in(task.name) for task in tasks}


def problem(suite: str, task: int) -> bddl.Problem:
    """What the task's file says; UserError where LIBERO could not run it."""
    return bddl.read_problem(bddl_file(suite, task))


def bddl_file(suite: str, task: int) -> Path:
    check_task(suite, task)
    return _tasks(suite)[task].bddl


class _ArrayUnpickler(pickle.Unpickler):
    """Reads a pickled numpy array and nothing else: a pickle may name any function, and loading it would call that."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # written by numpy 2
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
        ("__builtin__", "bytes"): bytes,  # of an array without numbers
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which arrays do not need: it was tampered with")
        return self.ALLOWED[module, name]


_UNREADABLE = (
    *(OSError, EOFError, TypeError, ValueError, StopIteration),
    *(zipfile.BadZipFile, pickle.UnpicklingError),
)


@functools.lru_cache(maxsize=32)
def _read_init_states(path: Path) -> np.ndarray:
    # A torch.save file of a numpy array is a zip around a pickle. Read without torch: workers need not import it.
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            states = np.asarray(_ArrayUnpickler(archive.open(pickled)).load(), dtype=np.float64)
        if states.ndim != 2 or not len(states):
            raise ValueError(f"its shape is {list(states.shape)}")
    except (
        OSError,
        zipfile.BadZipFile,
        StopIteration,
        pickle.UnpicklingError,
        EOFError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"the initial states in {path} cannot be read: {error or 'it holds no array'}; needed: a numpy array "
            "[states, 1 + nq + nv] written by torch.save; LIBERO's own: pip install --force-reinstall --no-deps "
            "hf-libero==0.1.4"
        ) from error
    states.setflags(write=False)
    return states


def init_states(suite: str, task: int) -> np.ndarray | None:
    """float64 [states, 1 + nq + nv], read-only: time, qpos, qvel of every initial state of the task's file (LIBERO's
    own have 50); None where the task has no such file: they are drawn."""
    check_task(suite, task)
    path = _tasks(suite)[task].init
    return None if path is None else _read_init_states(path)


def official_init_states(suite: str, task: int) -> np.ndarray:
    """`init_states` of a task that has a file of them."""
    states = init_states(suite, task)
    assert states is not None, f"the initial states of task {task} of suite {suite!r} are drawn"
    return states


def horizon(suite: str) -> int:
    """Control steps of an evaluation episode; LIBERO-Pro's are those of the suite that it varies."""
    check_suite(suite)
    return HORIZONS.get(pro_base(suite) if is_pro(suite) else suite, FOLDER_HORIZON)


# ----------------------------------------------------------------------------------------------------- config, assets


def _write_config() -> Path:
    """Write LIBERO's config.yaml into the private cache: importing it then asks nothing. Safe when processes race."""
    package, folder = _package_dir(), cache_dir() / "libero_config"
    paths = {
        "assets": package / "assets",
        "bddl_files": package / "bddl_files",
        "benchmark_root": package,
        "datasets": cache_dir() / "libero_datasets",
        "init_states": package / "init_files",
    }
    text = "".join(f"{key}: {str(value)!r}\n" for key, value in paths.items())
    config = folder / "config.yaml"
    if not config.is_file() or config.read_text(encoding="utf-8") != text:
        handle, name = tempfile.mkstemp(dir=make_folder(folder))
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, config)
    return folder


@functools.cache
def _import_libero() -> None:
    check_gl()
    os.environ.setdefault("LP_NUM_THREADS", "0")  # software GL on the calling thread: a small frame is not worth more
    os.environ["LIBERO_CONFIG_PATH"] = str(_write_config())
    _keep_robosuite_from_logging_to_a_file()
    # robosuite wants the number of the EGL device to be among these, although the two are counted differently
    visible = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        import libero.libero.envs.bddl_utils as parser
    finally:
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
    parser.eval = bddl.number  # type: ignore[attr-defined]  # it would evaluate yaw angles as Python


def _keep_robosuite_from_logging_to_a_file() -> None:
    """Stand in for the private macro file that robosuite looks for, unless the user has one.

    By default it logs to a file in /tmp, which belongs to the first user of a machine: for all others its import fails.
    """
    package = importlib.util.find_spec("robosuite")
    if package is None or not package.origin or Path(package.origin).with_name("macros_private.py").is_file():
        return
    macros = types.ModuleType("robosuite.macros_private")
    macros.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules[macros.__name__] = macros


def _hub_assets() -> Path:
    _import_libero()
    from libero.libero.utils.download_utils import download_assets_from_huggingface

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the hub's client, about an option LIBERO gives it
            return Path(download_assets_from_huggingface())
    except Exception as error:  # whatever the hub's client raises: offline, missing client, full disk
        raise UserError(
            f"LIBERO's assets could not be downloaded ({type(error).__name__}: {str(error).splitlines()[0][:120]});"
            " without them: sim.assets=standin, or sim.assets=FOLDER with LIBERO's assets"
        ) from error


def resolve_assets(assets: str | os.PathLike) -> Path:
    """The folder with meshes and textures.

    Args:
        assets: "standin" (generated, needs nothing), "hub" (LIBERO's own, downloaded), or a folder with LIBERO's own.
    """
    if assets == "standin":
        from vla_rl.sim.libero.standin.write import write_assets

        return Path(write_assets())
    if assets == "hub":
        return _hub_assets()
    folder = Path(assets).expanduser()
    missing = [name for name in ASSET_FOLDERS if not (folder / name).is_dir()]
    if missing:
        what = "does not exist" if not folder.is_dir() else f"has no {', '.join(missing)}"
        raise UserError(
            f"assets folder {str(assets)!r} {what}; allowed: standin, hub, or a folder holding"
            f" {', '.join(ASSET_FOLDERS)}; e.g. sim.assets=standin"
        )
    return folder.resolve()


def standin_lacks(suite: str, task: int) -> list[str]:
    """What of the task the stand-in assets do not have: categories of things, or the scene."""
    from vla_rl.sim.libero.standin.write import CATEGORIES, SCENES

    parsed = problem(suite, task)
    things = {*parsed.objects.values(), *parsed.fixtures.values()} - {bddl.WORKSPACES[parsed.name]}
    return sorted(things - CATEGORIES) + (["its scene"] if parsed.name not in SCENES else [])


def boot(assets: str | os.PathLike) -> Path:
    """Make LIBERO importable without questions and let it find `assets`. Returns the assets' folder."""
    folder = resolve_assets(assets)
    _import_libero()
    import libero.libero

    libero.libero._assets_path_cache = str(folder)
    return folder
