"""The colours of all figures and videos: Okabe-Ito, told apart without red or green, and in print."""

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#000000")
PHASE_COLOURS = (
    "#56B4E9",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#8C8C8C",
)  # in the order of `phases.PHASES`
SUCCESS_COLOUR, FAILURE_COLOUR = "#0072B2", "#D55E00"
FAILURE_PALE = "#F4B183"  # beside the colour of success where areas must differ in grey as well


def phase_colour(phase: int) -> str:
    """The colour of a phase by its index; colours begin again where a labeller has more phases than there are."""
    return PHASE_COLOURS[phase % len(PHASE_COLOURS)]
