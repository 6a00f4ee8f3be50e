"""Stand-in assets: LIBERO's Object, Spatial and Goal scenes made of boxes and cylinders, so that nothing is downloaded.

LIBERO takes its objects from MJCF files in a fixed folder layout. `write_assets` writes files of that layout from the
rows of `objects` and `tabletop`. The official task and initial-state files then work as they are: bodies,
joints and sites have the names and order LIBERO expects, and the objects rest where LIBERO's own do. Pictures differ,
on purpose: flat saturated colours on a plain floor.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

from PIL import Image

from vla_rl.errors import UserError
from vla_rl.sim.cache import cache_dir, make_folder
from vla_rl.sim.libero.standin.mjcf import TEXTURES, floor_scene, furniture_mjcf, object_mjcf, table_scene
from vla_rl.sim.libero.standin.objects import OBJECTS
from vla_rl.sim.libero.standin.tabletop import FURNITURE, TABLEWARE

CATEGORIES = frozenset(
    [row.name for row in (*OBJECTS, *TABLEWARE)] + [Path(row.file).stem for row in FURNITURE]
)  # of objects and fixtures, as task files name them
SCENES = ("libero_floor_manipulation", "libero_tabletop_manipulation")  # problems whose floor or table is written


def write_assets(folder: Path | None = None) -> Path:
    """Write the assets unless they are there already, and return their folder.

    Args:
        folder: where; default: the user's cache, in a folder named after the content, so that versions never mix.

    Several processes may call at once: files are written aside and appear all together.

    Raises:
        UserError: `folder` holds something else, or cannot be written.
    """
    files = _files()
    folder = Path(folder) if folder is not None else cache_dir() / f"standin-{_digest(files)}"
    if _holds(folder, files):
        return folder
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=make_folder(folder.parent)))
    try:
        for name, content in files.items():
            path = aside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        os.chmod(aside, 0o755)  # mkdtemp makes it private; a cache may be shared
        os.rename(aside, folder)  # fails where a non-empty folder stands
    except OSError as error:
        if not _holds(folder, files):  # else another process was faster
            raise UserError(
                f"cannot write stand-in assets to {folder}: {error.strerror}; allowed: a folder that is new, empty or"
                " written by this version; delete it, or set XDG_CACHE_HOME to a place of your own"
            ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _holds(folder: Path, files: dict[str, bytes]) -> bool:
    return all((folder / name).is_file() and (folder / name).read_bytes() == content for name, content in files.items())


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:12]


def _files() -> dict[str, bytes]:
    """Every file's content, by path within the folder."""
    files = {f"{row.family}/{row.name}/{row.name}.xml": _xml(object_mjcf(row)) for row in (*OBJECTS, *TABLEWARE)}
    files |= {row.file: _xml(furniture_mjcf(row)) for row in FURNITURE}
    files["scenes/libero_floor_base_style.xml"] = _xml(floor_scene())
    files["scenes/libero_tabletop_base_style.xml"] = _xml(table_scene())
    return files | {f"textures/{name}.png": _plain_png() for name in TEXTURES.values()}


def _xml(root: ET.Element) -> bytes:
    ET.indent(root)
    return ET.tostring(root)


def _plain_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()
