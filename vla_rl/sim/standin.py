"""Stand-in assets: LIBERO-Object's scene made of boxes and cylinders, written by code, so that no download is needed.

LIBERO takes its objects from MJCF files in a fixed folder layout. `write_assets` writes files of that layout from the
rows of `standin_table`. The official task and initial-state files then work as they are: bodies, joints and sites have
the names and order LIBERO expects, and the objects rest where LIBERO's own do. Pictures differ, on purpose: flat
saturated colours on a plain floor.
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
from vla_rl.sim.libero import cache_dir
from vla_rl.sim.standin_table import OBJECTS, XYZ, Part, StandIn

# Contact parameters of every LIBERO object: hard (1 ms, critically damped), grippy. They decide whether a grasp holds.
CONTACT = {"friction": "0.95 0.3 0.1", "solref": "0.001 1", "solimp": "0.998 0.998 0.001"}
FLOOR_RGBA, WALL_RGB = "0.5 0.5 0.52 1", "0.75 0.78 0.8"
COLLISION, VISUAL = "0", "1"  # robosuite's geom groups: one collides, the other is drawn
UNTURNED = "1 0 0 0"
# Turns about y by 0, 45, 90 and 135 degrees: half angles' cosine and sine.
OCTAGON_QUATS = (UNTURNED, "0.92388 0 0.38268 0", "0.70711 0 0.70711 0", "0.38268 0 0.92388 0")
OCTAGON_SHORT_MM = 0.3
OCTAGON_SIDE = 0.41421  # tan(22.5 deg): half a side of a regular octagon, relative to its apothem
GABLE_QUAT = "0.92388 0.38268 0 0"  # 45 degrees about x
ALONG_Y_QUAT = "0.70711 0.70711 0 0"  # MuJoCo's cylinders lie along z


def write_assets(folder: Path | None = None) -> Path:
    """Write the assets unless they are there already, and return their folder.

    Args:
        folder: where; default: the user's cache, in a folder named after the content, so that versions never mix.

    Several processes may call at once: files are written aside and appear all together.

    Raises:
        UserError: `folder` holds something else.
    """
    files = _files()
    folder = Path(folder) if folder is not None else cache_dir() / f"standin-{_digest(files)}"
    if _holds(folder, files):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
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
    files = {f"{row.family}/{row.name}/{row.name}.xml": _xml(object_mjcf(row)) for row in OBJECTS}
    files["scenes/libero_floor_base_style.xml"] = _xml(scene_mjcf())
    # LIBERO puts these two file names into the scene's textures by itself; nothing is drawn with them.
    files |= {f"textures/{name}.png": _plain_png() for name in ("light-gray-floor-tile", "light-gray-plaster")}
    return files


def _xml(root: ET.Element) -> bytes:
    ET.indent(root)
    return ET.tostring(root)


def _plain_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------------- MJCF


def object_mjcf(row: StandIn) -> ET.Element:
    """The MJCF of one object as robosuite's `MujocoXMLObject` reads it: body `object`, placement sites beside it."""
    root = ET.Element("mujoco", model=row.name)
    ET.SubElement(root, "asset")
    outer = ET.SubElement(ET.SubElement(root, "worldbody"), "body")
    body = ET.SubElement(outer, "body", name="object")
    inertia = " ".join(f"{value * 1e-6:.4g}" for value in row.inertia_kg_mm2)
    ET.SubElement(body, "inertial", pos=_metres(row.com_mm), mass=str(row.mass_kg), diaginertia=inertia)
    if row.contain:
        _site(body, "contain_region", row.contain.centre_mm, type="box", size=_metres(row.contain.half_mm))
    rgba = " ".join(f"{value:g}" for value in (*row.colour, 1.0))
    for part in row.parts:
        for attributes in _collision_boxes(part):
            ET.SubElement(body, "geom", attributes | CONTACT, group=COLLISION, pos=_metres(part.centre_mm))
        _drawn(body, part, rgba)
    _site(outer, "bottom_site", (0, 0, row.bottom_mm))
    _site(outer, "top_site", (0, 0, row.top_mm))
    _site(outer, "horizontal_radius_site", (row.radius_mm, row.radius_mm, 0))
    return root


def _collision_boxes(part: Part) -> list[dict[str, str]]:
    """Boxes only: box on box has MuJoCo's steadiest contacts, several points a face, so that nothing spins in the hand.

    A can is an octagonal prism: four boxes, each spanning two opposite sides. It stands on the first two; the others
    end a little before, for fewer contacts with the floor.
    """
    x, y, z = part.half_mm
    if part.shape == "can":
        sizes = [_metres((x, y - short, x * OCTAGON_SIDE)) for short in (0, OCTAGON_SHORT_MM) * 2]
        return [{"type": "box", "size": s, "quat": quat} for s, quat in zip(sizes, OCTAGON_QUATS, strict=True)]
    return [_box(part)]


def _box(part: Part) -> dict[str, str]:
    x, y, z = part.half_mm
    if part.shape == "gable":  # half the side of a square with half diagonal y
        return {"type": "box", "size": _metres((x, y / 2**0.5, y / 2**0.5)), "quat": GABLE_QUAT}
    return {"type": "box", "size": _metres((x, y, z)), "quat": UNTURNED}


def _drawn(body: ET.Element, part: Part, rgba: str) -> None:
    attributes = _box(part)
    if part.shape == "can":
        attributes = {"type": "cylinder", "size": _metres(part.half_mm[:2]), "quat": ALONG_Y_QUAT}
    ET.SubElement(
        body, "geom", attributes, group=VISUAL, contype="0", conaffinity="0", pos=_metres(part.centre_mm), rgba=rgba
    )


def _site(parent: ET.Element, name: str, pos_mm: XYZ, **attributes: str) -> None:
    attributes = {"size": "0.005", "quat": UNTURNED, "rgba": "0 0 0 0"} | attributes
    ET.SubElement(parent, "site", attributes, name=name, pos=_metres(pos_mm))


def _metres(values_mm: tuple[float, ...]) -> str:
    return " ".join(f"{value / 1000:.6g}" for value in values_mm)


def scene_mjcf() -> ET.Element:
    """The floor arena: a plain floor, and a flat sky in place of walls. LIBERO adds cameras and the robot."""
    root = ET.Element("mujoco", model="floor_arena")
    asset, world = ET.SubElement(root, "asset"), ET.SubElement(root, "worldbody")
    ET.SubElement(asset, "texture", type="skybox", builtin="flat", rgb1=WALL_RGB, rgb2=WALL_RGB, width="8", height="8")
    for name, file in (("texplane", "light-gray-floor-tile"), ("tex-wall", "light-gray-plaster")):
        ET.SubElement(asset, "texture", type="2d", name=name, file=f"../textures/{file}.png")
    floor = ET.SubElement(world, "body", name="floor", pos="0 0 0")
    ET.SubElement(
        floor, "geom", name="floor", type="plane", size="3 3 0.125", condim="3", group=VISUAL, rgba=FLOOR_RGBA
    )
    # One light from above and in front, far away so that the floor is evenly lit; no shadows, which cost a pass.
    light = {"dir": "-0.2 -0.3 -1", "ambient": "0.3 0.3 0.3", "diffuse": "0.4 0.4 0.4", "specular": "0 0 0"}
    ET.SubElement(world, "light", light, name="light", pos="0 0 4", directional="true", castshadow="false")
    return root
