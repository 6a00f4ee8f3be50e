"""The stand-ins that LIBERO-Spatial and LIBERO-Goal need beside those of LIBERO-Object: tableware and furniture.

The same rules as in `standin_table`: LIBERO's body frames, outlines to about a millimetre, masses and inertia to a few
per cent. Joints and regions are LIBERO's exactly, since its object classes and conditions read them. Round things are
rings and octagons of boxes. What a hand is to move (handles, the knob) is orange.
"""

from __future__ import annotations

from vla_rl.sim.libero.standin.parts import (
    BLACK,
    OAK,
    ORANGE,
    PINK,
    PURPLE,
    RED,
    SILVER,
    TEAL,
    WALNUT,
    WHITE,
    YELLOW,
    Furniture,
    Joint,
    Part,
    Piece,
    Region,
    Ring,
    StandIn,
)

TABLEWARE = (
    StandIn(
        "akita_black_bowl", BLACK, 0.00559, (2.3, 0.5, 22.7), (5.7, 6.1, 9.1), -60, 40, 25,
        (
            Part("box", (0.0, -1.1, 4.2), (22.6, 23.4, 2.6)),
            Ring(z_mm=9.8, radius_mm=33.6, thick_mm=0.7, rise_mm=11.9, lean_deg=60.0, sides=12),
            Ring(z_mm=33.7, radius_mm=47.1, thick_mm=1.3, rise_mm=18.8, lean_deg=14.7, sides=12),
        ),
        family="stable_scanned_objects",
    ),
    StandIn(
        "plate", WHITE, 0.01152, (0.3, 5.1, 6.4), (15.1, 12.9, 27.6), -60, 40, 25,
        (
            Part("box", (0.0, 0.0, 3.1), (30.6, 30.6, 2.2)),
            Ring(z_mm=6.96, radius_mm=48.3, thick_mm=2.54, rise_mm=19.1, lean_deg=68.2, sides=8),
        ),
        family="stable_scanned_objects",
    ),
    StandIn(
        "glazed_rim_porcelain_ramekin", PINK, 0.00966, (-2.5, 0.1, 16.8), (7.4, 8.0, 12.2), -60, 40, 25,
        (
            Part("post", (0.0, 0.0, 3.95), (32.0, 32.0, 3.3)),
            Ring(z_mm=22.0, radius_mm=38.2, thick_mm=2.6, rise_mm=20.8, lean_deg=8.5, sides=12),
        ),
        family="stable_scanned_objects",
    ),
    StandIn(
        "cookies", YELLOW, 0.00964, (0.0, 0.0, 0.0), (5.77, 3.38, 8.58), -60, 40, 25,
        (Part("box", (0.0, 0.0, 0.0), (31.0, 41.3, 9.4)),),
    ),
    StandIn(
        "wine_bottle", RED, 0.01539, (0.2, 0.0, 56.1), (22.9, 22.9, 2.54), -60, 40, 25,
        (
            Part("box", (0.0, 0.0, 37.3), (15.0, 15.0, 36.2)),
            Part("post", (0.0, 0.0, 33.3), (19.8, 19.8, 29.8)),
            Part("box", (0.0, 0.0, 81.1), (11.8, 11.8, 7.0)),
            Part("box", (0.0, 0.0, 93.1), (8.0, 8.0, 7.0)),
            Part("post", (0.0, 0.0, 129.0), (6.8, 6.8, 29.0)),
        ),
        family="turbosquid_objects",
    ),
)  # fmt: skip


def _drawer(level: str, z_mm: float, region_z_mm: float) -> Piece:
    """A drawer around height z: a front of two layers, so that it closes before the shelf; behind it a box."""
    return Piece(
        f"cabinet_{level}",
        (
            Part("box", (3.3, -75.2, z_mm - 0.5), (109.3, 2.7, 34.2), colour=OAK),
            Part("box", (3.3, -68.4, z_mm), (106.8, 3.6, 32.1), colour=OAK),
            Part("box", (3.3, 90.8, z_mm), (106.8, 3.6, 32.1), colour=OAK),
            Part("box", (-101.9, 11.0, z_mm), (2.4, 81.5, 31.6), colour=OAK),
            Part("box", (108.9, 11.0, z_mm), (2.4, 81.5, 31.6), colour=OAK),
            Part("box", (3.5, 10.5, z_mm - 28.4), (107.0, 81.0, 4.0), colour=OAK),
            Part("box", (-2.8, -101.6, z_mm + 0.3), (44.5, 7.7, 8.2), colour=ORANGE),
            Part("box", (29.2, -83.5, z_mm + 0.3), (5.1, 10.6, 5.5), colour=ORANGE),
            Part("box", (-35.6, -83.5, z_mm + 0.3), (5.1, 10.6, 5.5), colour=ORANGE),
        ),
        (Region(f"{level}_region", (3.28, 11.28, region_z_mm), (29.93, 75.61, 102.24), (0.70711, 0.0, 0.70711, 0.0)),),
        Joint(f"{level}_level", "slide", (0.0, 1.0, 0.0), (-0.16, 0.01), damping=50.0),
    )


FURNITURE = (
    Furniture(
        "articulated_objects/wooden_cabinet.xml", WALNUT, -45, 45, 45,
        (
            Piece(
                "base",
                (
                    Part("box", (4.0, 109.4, 113.8), (119.1, 2.3, 105.8)),
                    Part("box", (4.0, 16.4, 6.9), (122.8, 89.6, 2.0)),
                    Part("box", (-112.2, 16.3, 114.3), (5.2, 95.4, 105.8)),
                    Part("box", (119.0, 16.3, 114.3), (5.2, 95.4, 105.8)),
                    Part("box", (4.0, 18.7, 9.3), (111.7, 89.4, 0.9)),
                    Part("box", (4.0, 18.7, 79.3), (111.7, 89.4, 0.9)),
                    Part("box", (4.0, 18.7, 149.3), (111.7, 89.4, 0.9)),
                    Part("box", (3.9, 15.8, 221.6), (127.3, 94.1, 1.4)),
                ),
                (Region("top_side", (3.54, 15.67, 221.52), (125.34, 94.38, 1.47)),),
            ),
            _drawer("top", 183.6, 185.63),
            _drawer("middle", 113.9, 116.9),
            _drawer("bottom", 45.2, 47.01),
        ),
    ),
    Furniture(
        "articulated_objects/flat_stove.xml", TEAL, -45, 45, 45,
        (
            Piece(
                "burner",
                (
                    Part("box", (0.0, 0.0, 2.5), (95.0, 95.0, 22.5)),
                    Part("post", (0.0, 0.0, 24.75), (75.0, 75.0, 0.75), colour=SILVER),
                ),
                (
                    Region("cook_region", (0.0, 0.0, 0.0), (75.0, 75.0, 2.5)),
                    Region("burner", (0.0, 0.0, 25.5), (62.5, 0.5, 0.0), shape="cylinder", colour=RED),
                ),
                pos_mm=(150.0, 0.0, 0.0),
            ),
            Piece(
                "button",
                (
                    Part("post", (1.3, 4.4, 6.6), (46.5, 46.5, 6.2)),
                    Part("box", (1.3, 17.4, 25.7), (12.1, 34.5, 24.3), colour=ORANGE),
                    Part("box", (1.2, -24.5, 24.4), (12.1, 7.8, 19.4), colour=ORANGE),
                    Part("box", (1.1, -36.4, 17.2), (12.1, 4.2, 16.6), colour=ORANGE),
                ),
                joint=Joint("button", "hinge", (0.0, 0.0, 1.0), (-0.005, 2.1), damping=1.0),
                quat=(0.7071068, 0.0, 0.0, 0.7071068),
            ),
        ),
    ),
    Furniture(
        "turbosquid_objects/wine_rack/wine_rack.xml", PURPLE, -60, 40, 25,
        (
            Piece(
                "rack",
                (
                    Part("box", (0.0, -6.1, 251.2), (134.4, 78.9, 4.5), about_x_deg=31.3),
                    Part("box", (0.0, -42.7, 127.3), (134.4, 78.9, 4.5), about_x_deg=31.3),
                    Part("box", (0.0, -74.8, 220.7), (132.2, 8.7, 1.1), about_x_deg=-60.7),
                    Part("box", (0.0, -109.1, 97.4), (132.2, 8.7, 1.1), about_x_deg=-60.7),
                    Part("box", (0.0, 0.0, 6.6), (66.5, 93.0, 4.5)),
                    Part("box", (0.0, 69.4, 10.1), (90.0, 60.0, 4.5), about_x_deg=-7.5),
                    Part("box", (0.0, -64.3, 12.6), (90.0, 60.0, 4.5), about_x_deg=8.0),
                    Part("box", (0.0, 0.0, 20.5), (90.5, 14.1, 4.5)),
                    Part("box", (0.0, 8.9, 170.3), (7.6, 9.1, 161.7), about_x_deg=-15.8),
                ),
                (
                    Region(
                        "top_region", (0.0, -80.03, 217.45), (100.87, 22.0, 2.51), (0.8549119, -0.5187733, 0.0, 0.0)
                    ),
                ),
            ),
        ),
    ),
)  # fmt: skip
