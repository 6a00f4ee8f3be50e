"""From rows of stand-ins to MJCF, as robosuite and LIBERO read it: objects, furniture, and the two scenes."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

from vla_rl.sim.libero.standin.parts import (
    FLOOR,
    TABLE,
    UNTURNED,
    WXYZ,
    XYZ,
    Furniture,
    Part,
    Piece,
    Region,
    Ring,
    StandIn,
)

# Contact parameters of every LIBERO object: hard (1 ms, critically damped), grippy. They decide whether a grasp holds.
CONTACT = {"friction": "0.95 0.3 0.1", "solref": "0.001 1", "solimp": "0.998 0.998 0.001"}
WALL_RGB = "0.75 0.78 0.8"
COLLISION, VISUAL = "0", "1"  # robosuite's geom groups: one collides, the other is drawn
OCTAGON_TURNS_DEG = (0.0, 45.0, 90.0, 135.0)
OCTAGON_SHORT_MM = 0.3
OCTAGON_SIDE = 0.41421  # tan(22.5 deg): half a side of a regular octagon, relative to its apothem
TEXTURES = {"texplane": "light-gray-floor-tile", "tex-wall": "light-gray-plaster"}


def object_mjcf(row: StandIn) -> ET.Element:
    """The MJCF of one object as robosuite's `MujocoXMLObject` reads it: body `object`, placement sites beside it."""
    root, outer, body = _bodies(row.name)
    inertia = " ".join(f"{value * 1e-6:.4g}" for value in row.inertia_kg_mm2)
    ET.SubElement(body, "inertial", pos=_metres(row.com_mm), mass=str(row.mass_kg), diaginertia=inertia)
    if row.contain:
        _region(body, Region("contain_region", row.contain.centre_mm, row.contain.half_mm))
    _geoms(body, row.parts, row.colour)
    _placement_sites(outer, row)
    return root


def furniture_mjcf(row: Furniture) -> ET.Element:
    """The MJCF of one piece of furniture: each of its pieces is a body within `object`."""
    root, outer, body = _bodies(row.file.rpartition("/")[2].removesuffix(".xml"))
    for piece in row.pieces:
        _piece(body, piece, row.colour)
    _placement_sites(outer, row)
    return root


def _bodies(name: str) -> tuple[ET.Element, ET.Element, ET.Element]:
    root = ET.Element("mujoco", model=name)
    ET.SubElement(root, "asset")
    outer = ET.SubElement(ET.SubElement(root, "worldbody"), "body")
    return root, outer, ET.SubElement(outer, "body", name="object")


def _piece(parent: ET.Element, piece: Piece, colour: XYZ) -> None:
    body = ET.SubElement(parent, "body", name=piece.name, pos=_metres(piece.pos_mm), quat=_numbers(piece.quat))
    if joint := piece.joint:
        ET.SubElement(body, "inertial", pos="0 0 0", mass="3", diaginertia="1 1 1")
        limits = {"limited": "true", "range": _numbers(joint.range), "damping": f"{joint.damping:g}"}
        ET.SubElement(body, "joint", limits, name=joint.name, type=joint.kind, axis=_numbers(joint.axis))
    for region in piece.regions:
        _region(body, region)
    _geoms(body, piece.parts, colour)


def _geoms(body: ET.Element, parts: tuple[Part | Ring, ...], colour: XYZ) -> None:
    for part in parts:
        boxes = _ring(part) if isinstance(part, Ring) else _collision_boxes(part)
        for attributes in boxes:
            ET.SubElement(body, "geom", attributes | CONTACT, group=COLLISION)
        rgba = _numbers((*(getattr(part, "colour", None) or colour), 1.0))
        for attributes in boxes if isinstance(part, Ring) else [_drawn(part)]:
            ET.SubElement(body, "geom", attributes, group=VISUAL, contype="0", conaffinity="0", rgba=rgba)


def _collision_boxes(part: Part) -> list[dict[str, str]]:
    """Boxes only: box on box has MuJoCo's steadiest contacts, several points a face, so that nothing spins in the hand.

    A cylinder is an octagonal prism: four boxes, each spanning two opposite sides. It stands on the first two; the
    others end a little before, for fewer contacts with the floor.
    """
    x, y, z = part.half_mm
    shorts = (0, OCTAGON_SHORT_MM) * 2
    if part.shape == "can":
        boxes = [((x, y - short, x * OCTAGON_SIDE), "y") for short in shorts]
    elif part.shape == "post":
        boxes = [((x, x * OCTAGON_SIDE, z - short), "z") for short in shorts]
    else:
        return [_drawn(part)]
    return [
        _box(part.centre_mm, half, _turn(axis, degrees))
        for (half, axis), degrees in zip(boxes, OCTAGON_TURNS_DEG, strict=True)
    ]


def _ring(ring: Ring) -> list[dict[str, str]]:
    lean = math.radians(ring.lean_deg)
    width = (ring.radius_mm + ring.rise_mm * math.sin(lean)) * math.tan(math.pi / ring.sides)
    boxes = []
    for side in range(ring.sides):
        angle = 2 * math.pi * side / ring.sides
        centre = (ring.radius_mm * math.cos(angle), ring.radius_mm * math.sin(angle), ring.z_mm)
        turn, slope = _turn("z", math.degrees(angle)), _turn("y", ring.lean_deg)
        quat = (turn[0] * slope[0], -turn[3] * slope[2], turn[0] * slope[2], turn[3] * slope[0])  # leans, then turns
        boxes.append(_box(centre, (ring.thick_mm, width, ring.rise_mm), quat))
    return boxes


def _drawn(part: Part) -> dict[str, str]:
    x, y, z = part.half_mm
    if part.shape == "gable":  # half the side of a square with half diagonal y
        return _box(part.centre_mm, (x, y / 2**0.5, y / 2**0.5), _turn("x", 45.0))
    if part.shape == "box":
        return _box(part.centre_mm, part.half_mm, _turn("x", part.about_x_deg))
    # MuJoCo's cylinders lie along z
    half, quat = ((x, y), _turn("x", 90.0)) if part.shape == "can" else ((x, z), UNTURNED)
    return {"type": "cylinder", "pos": _metres(part.centre_mm), "size": _metres(half), "quat": _numbers(quat)}


def _box(centre_mm: XYZ, half_mm: XYZ, quat: WXYZ) -> dict[str, str]:
    return {"type": "box", "pos": _metres(centre_mm), "size": _metres(half_mm), "quat": _numbers(quat)}


def _turn(axis: str, degrees: float) -> WXYZ:
    half = math.radians(degrees) / 2
    cosine, sine = round(math.cos(half), 5), round(math.sin(half), 5)
    x, y, z = (sine if name == axis else 0.0 for name in "xyz")
    return (cosine, x, y, z)


def _region(body: ET.Element, region: Region) -> None:
    # LIBERO shows a region by flipping the sign of its opacity; one that was never seen stays at 0.
    rgba = _numbers((*region.colour, 1.0)) if region.colour else "0 0 0 0"
    attributes = {"type": region.shape, "size": _metres(region.half_mm), "quat": _numbers(region.quat), "rgba": rgba}
    ET.SubElement(body, "site", attributes, name=region.name, pos=_metres(region.centre_mm))


def _placement_sites(outer: ET.Element, row: StandIn | Furniture) -> None:
    places = {
        "bottom_site": (0, 0, row.bottom_mm),
        "top_site": (0, 0, row.top_mm),
        "horizontal_radius_site": (row.radius_mm, row.radius_mm, 0),
    }
    for name, place_mm in places.items():
        ET.SubElement(outer, "site", name=name, pos=_metres(place_mm), size="0.005", rgba="0 0 0 0")


def _metres(values_mm: tuple[float, ...]) -> str:
    return " ".join(f"{value / 1000:.6g}" for value in values_mm)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{round(value, 7):.7g}" for value in values)


# ------------------------------------------------------------------------------------------------------------ scenes


def floor_scene() -> ET.Element:
    """The floor arena: a plain floor, and a flat sky in place of walls. LIBERO adds cameras and the robot."""
    root, world = _scene("floor_arena")
    _floor(ET.SubElement(world, "body", name="floor", pos="0 0 0"))
    _light(world)
    return root


def table_scene() -> ET.Element:
    """The table arena: a table, whose size and place LIBERO sets, on the same floor under the same sky."""
    root, world = _scene("table_arena")
    _floor(world)
    table = ET.SubElement(world, "body", name="table", pos="0 0 0.4")
    size = {"type": "box", "size": "0.4 0.4 0.4"}
    ET.SubElement(table, "geom", size, name="table_collision", group=COLLISION, friction="1 0.005 0.0001")
    seen = {"group": VISUAL, "contype": "0", "conaffinity": "0", "rgba": _numbers((*TABLE, 1.0))}
    ET.SubElement(table, "geom", size | seen, name="table_visual")
    ET.SubElement(table, "site", name="table_top", pos="0 0 0.4", size="0.001 0.001 0.001", rgba="0 0 0 0")
    for leg in (1, 2, 3, 4):
        ET.SubElement(table, "geom", seen, name=f"table_leg{leg}_visual", type="cylinder", size="0.05 0.1")
    _light(world)
    return root


def _scene(name: str) -> tuple[ET.Element, ET.Element]:
    root = ET.Element("mujoco", model=name)
    asset, world = ET.SubElement(root, "asset"), ET.SubElement(root, "worldbody")
    ET.SubElement(asset, "texture", type="skybox", builtin="flat", rgb1=WALL_RGB, rgb2=WALL_RGB, width="8", height="8")
    # LIBERO looks for these two textures and sets their files; nothing is drawn with them.
    for texture, file in TEXTURES.items():
        ET.SubElement(asset, "texture", type="2d", name=texture, file=f"../textures/{file}.png")
    return root, world


def _floor(parent: ET.Element) -> None:
    rgba = _numbers((*FLOOR, 1.0))
    ET.SubElement(parent, "geom", name="floor", type="plane", size="3 3 0.125", condim="3", group=VISUAL, rgba=rgba)


def _light(world: ET.Element) -> None:
    """From above and in front, far away so that the floor is evenly lit; no shadows, which cost a pass."""
    light = {"dir": "-0.2 -0.3 -1", "ambient": "0.3 0.3 0.3", "diffuse": "0.4 0.4 0.4", "specular": "0 0 0"}
    ET.SubElement(world, "light", light, name="light", pos="0 0 4", directional="true", castshadow="false")
