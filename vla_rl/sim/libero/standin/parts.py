"""What stand-in assets are described with: convex parts, objects that lie about, furniture with joints, and colours.

All lengths in mm, in the frame of the body, which is LIBERO's: its initial states give poses and joint positions in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

XYZ = tuple[float, float, float]
WXYZ = tuple[float, float, float, float]
UNTURNED: WXYZ = (1.0, 0.0, 0.0, 0.0)

RED, PINK, ORANGE, YELLOW = (0.9, 0.02, 0.02), (1.0, 0.2, 0.65), (1.0, 0.45, 0.0), (1.0, 0.95, 0.05)
GREEN, CYAN, BLUE, PURPLE = (0.05, 0.6, 0.1), (0.0, 0.85, 0.9), (0.05, 0.15, 0.9), (0.45, 0.05, 0.65)
WHITE, BROWN, BEIGE = (1.0, 1.0, 1.0), (0.25, 0.1, 0.03), (0.8, 0.62, 0.3)
BLACK, TEAL, SILVER = (0.05, 0.05, 0.05), (0.1, 0.45, 0.45), (0.8, 0.85, 0.85)
WALNUT, OAK = (0.5, 0.25, 0.08), (0.75, 0.5, 0.25)
FLOOR, TABLE = (0.5, 0.5, 0.52), (0.7, 0.66, 0.6)


@dataclass(frozen=True, slots=True)
class Part:
    """A convex piece of a body. `half_mm` is half its bounding box before it is turned.

    box: fills it. can, post: a cylinder along y, along z. gable: the ridge roof along x that a box turned by 45 degrees
    makes.
    """

    shape: Literal["box", "can", "post", "gable"]
    centre_mm: XYZ
    half_mm: XYZ
    about_x_deg: float = 0.0  # boxes only
    colour: XYZ | None = None  # None = the body's


@dataclass(frozen=True, slots=True)
class Ring:
    """A wall of boxes standing in a circle about z, each leaning outwards: a bowl's side, a plate's rim.

    The boxes' middles lie on a circle of `radius_mm` at height `z_mm`. `rise_mm` is half a box's length along the
    slope, `thick_mm` half its thickness; it is as wide as closes the ring at the wider end.
    """

    z_mm: float
    radius_mm: float
    thick_mm: float
    rise_mm: float
    lean_deg: float  # 0 = upright, 90 = flat
    sides: int


@dataclass(frozen=True, slots=True)
class Region:
    """A place that LIBERO's conditions name: a site of the body, box or upright cylinder (radius, half height, -)."""

    name: str
    centre_mm: XYZ
    half_mm: XYZ
    quat: WXYZ = UNTURNED
    shape: Literal["box", "cylinder"] = "box"
    colour: XYZ | None = None  # None = never seen; else LIBERO shows and hides it


@dataclass(frozen=True, slots=True)
class StandIn:
    """An object on a free joint. Inertia is about the centre of mass, along the body's axes."""

    name: str
    colour: XYZ  # RGB in 0..1
    mass_kg: float
    com_mm: XYZ
    inertia_kg_mm2: XYZ  # 1 kg mm^2 = 1e-6 kg m^2
    bottom_mm: float  # LIBERO's placement sites: nominal, used to draw new placements only
    top_mm: float
    radius_mm: float
    parts: tuple[Part | Ring, ...]
    family: str = "stable_hope_objects"  # the folder LIBERO looks in
    contain: Part | None = None  # the region in which an object counts as inside


@dataclass(frozen=True, slots=True)
class Joint:
    """How a piece of furniture moves: along or about `axis`, within `range` (m or rad)."""

    name: str
    kind: Literal["slide", "hinge"]
    axis: XYZ
    range: tuple[float, float]
    damping: float


@dataclass(frozen=True, slots=True)
class Piece:
    """A rigid piece of furniture, in the furniture's frame; fixed unless it has a joint."""

    name: str
    parts: tuple[Part, ...]
    regions: tuple[Region, ...] = ()
    joint: Joint | None = None
    pos_mm: XYZ = (0.0, 0.0, 0.0)
    quat: WXYZ = UNTURNED


@dataclass(frozen=True, slots=True)
class Furniture:
    """An object that is fixed to the table. Its moving pieces have LIBERO's mass, 3 kg, and inertia, 1 kg m^2."""

    file: str  # where LIBERO looks for it
    colour: XYZ
    bottom_mm: float
    top_mm: float
    radius_mm: float
    pieces: tuple[Piece, ...]
