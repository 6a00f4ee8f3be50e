"""The shapes, masses and colours of the stand-in objects for LIBERO-Object: one row per object.

Body frames are LIBERO's, because its initial states give poses in them: bottles, cans and cartons stand along +y, all
else along +z. Outlines, mass and inertia follow LIBERO's collision shapes to about a millimetre and a few per cent, so
that objects rest at the same height and fit the gripper the same way. Colours are this project's: far apart, so that a
small network on small frames can tell objects by colour alone.
"""

from __future__ import annotations

from vla_rl.sim.libero.standin.parts import (
    BEIGE,
    BLUE,
    BROWN,
    CYAN,
    GREEN,
    ORANGE,
    PINK,
    PURPLE,
    RED,
    WHITE,
    YELLOW,
    Part,
    StandIn,
)

# A carton: a box with a gable on top. Milk and orange juice differ in colour only.
_CARTON = (
    Part("box", (0.0, -15.0, 0.0), (26.4, 54.75, 26.25)),
    Part("gable", (0.0, 36.4, 0.0), (26.4, 25.0, 25.0)),
)

OBJECTS = (
    StandIn(
        "alphabet_soup", BLUE, 0.02585, (0.0, -0.8, -2.7), (18.2, 13.4, 18.7), -40, 40, 25,
        (Part("can", (0.0, -0.5, -3.2), (30.8, 37.9, 30.8)),),
    ),
    StandIn(
        "tomato_sauce", PINK, 0.02663, (0.6, -0.8, -2.4), (18.8, 13.9, 19.4), -60, 40, 25,
        (Part("can", (0.0, -0.5, -3.0), (30.8, 37.9, 30.8)),),
    ),
    StandIn(
        "salad_dressing", GREEN, 0.02178, (-0.5, -5.6, 0.2), (34.0, 5.2, 35.2), -60, 40, 25,
        (
            Part("box", (-1.0, -67.2, 0.2), (18.0, 5.5, 17.3)),
            Part("box", (-1.0, -30.7, 0.2), (25.5, 32.0, 17.3)),
            Part("box", (-0.5, 18.8, 0.2), (14.5, 17.5, 15.5)),
            Part("can", (0.2, 54.2, 0.2), (16.8, 18.65, 16.8)),
        ),
    ),
    StandIn(
        "ketchup", RED, 0.02322, (0.4, -9.0, 0.8), (37.9, 7.0, 40.3), -60, 40, 25,
        (
            Part("box", (0.4, -39.4, 0.8), (28.1, 33.05, 17.0)),
            Part("box", (0.4, 3.7, 0.8), (23.9, 11.3, 18.2)),
            Part("box", (0.4, 25.1, 0.8), (18.7, 11.3, 18.2)),
            Part("can", (0.1, 54.7, 0.6), (16.8, 18.5, 16.8)),
        ),
    ),
    StandIn(
        "bbq_sauce", PURPLE, 0.01218, (0.0, 0.0, -7.6), (11.2, 12.1, 2.6), -60, 60, 15,
        (
            Part("box", (0.0, 0.0, -27.8), (23.5, 14.5, 26.8)),
            Part("box", (0.0, 0.0, 12.3), (18.1, 14.3, 14.6)),
            Part("box", (0.0, 0.0, 39.1), (14.3, 14.5, 13.4)),
        ),
    ),
    StandIn("milk", WHITE, 0.03167, (0.0, -12.0, 0.0), (43.3, 14.5, 43.4), -60, 40, 30, _CARTON),
    StandIn("orange_juice", ORANGE, 0.03167, (0.0, -12.0, 0.0), (43.3, 14.5, 43.4), -60, 40, 25, _CARTON),
    StandIn(
        "cream_cheese", CYAN, 0.00619, (0.0, 0.0, 0.0), (1.1, 3.57, 4.34), -25, 25, 30,
        (Part("box", (0.0, 0.0, 0.0), (40.6, 21.3, 8.9)),),
    ),
    StandIn(
        "butter", YELLOW, 0.00525, (0.0, 0.0, 0.0), (0.82, 2.67, 3.22), -20, 20, 20,
        (Part("box", (0.0, 0.0, 0.0), (38.1, 19.8, 8.7)),),
    ),
    StandIn(
        "chocolate_pudding", BROWN, 0.01019, (-0.5, 0.0, 0.6), (2.46, 6.1, 7.28), -60, 40, 25,
        (Part("box", (-0.5, 0.0, 0.6), (40.1, 23.2, 13.7)),),
    ),
    StandIn(
        "basket", BEIGE, 0.13611, (1.3, 0.1, 60.9), (639.0, 684.0, 817.0), -60, 40, 25,
        (
            Part("box", (0.0, 0.0, 13.1), (76.6, 72.4, 8.5)),
            Part("box", (-74.0, 0.0, 75.3), (6.7, 75.7, 70.3)),
            Part("box", (74.0, 0.0, 75.3), (6.7, 75.7, 70.3)),
            Part("box", (0.0, -69.0, 75.3), (72.4, 6.7, 70.3)),
            Part("box", (0.0, 69.0, 75.3), (72.4, 6.7, 70.3)),
        ),
        family="stable_scanned_objects",
        contain=Part("box", (0.0, 0.0, 71.85), (61.08, 61.08, 69.49)),
    ),
)  # fmt: skip
