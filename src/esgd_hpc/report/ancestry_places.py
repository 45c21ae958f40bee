"""Where everything in the image of an ancestry is, in inches from the lower left corner.

A generation is a band: first its SGD step, then the births of each evolution step. A generation
without births in the tree is narrow.
"""

from collections.abc import Sequence

from esgd_hpc.report.lineage import Relative

BOX_WIDTH, BOX_HEIGHT = 0.68, 0.34
ROW = 0.46
STEP = 0.36
"""Room for the dots of one SGD step."""
CURVES = 0.5
"""Room for the curves from parents to children, before the boxes."""
MARGIN = 0.25
TITLE, CAPTION = 0.5, 0.9
"""Height of what is above the rows, and below: the numbers of the generations and the legend."""
LEAST_WIDTH = 6.4


class Places:
    """The size of an image, and the places in it."""

    def __init__(self, relatives: Sequence[Relative]) -> None:
        root = relatives[0]
        births = {relative.start for relative in relatives}
        first = int(min(births))
        columns = sorted({*births, *map(float, range(first, root.end + 1))})
        self.generations = range(first, root.end + 1)
        self._boxes: dict[float, float] = {}
        self._bands: dict[int, tuple[float, float]] = {}
        at, begun = MARGIN, MARGIN
        for place, column in enumerate(columns):
            if place and column == int(column):
                begun = at
                at += STEP
            if place and column in births:
                at += CURVES
            self._boxes[column] = at
            at += BOX_WIDTH if column in births or column == root.end else 0.0
            self._bands[int(column)] = begun, at
        self.width = max(at + MARGIN, LEAST_WIDTH)
        lanes = sorted({relative.lane for relative in relatives}, reverse=True)
        self._rows = {lane: CAPTION + (row + 0.5) * ROW for row, lane in enumerate(lanes)}
        self.top = CAPTION + len(lanes) * ROW
        self.height = self.top + TITLE

    def y(self, relative: Relative) -> float:
        return self._rows[relative.lane]

    def box(self, start: float) -> float:
        """Return the left side of the boxes of a birth."""
        return self._boxes[start]

    def leaving(self, start: float) -> float:
        """Return where the curves to the children of a birth leave their parents' rows."""
        return self._boxes[start] - CURVES

    def dot(self, generation: int) -> float:
        """Return where the dots of a generation's SGD step are."""
        return self._bands[generation][0] + STEP / 2

    def band(self, generation: int) -> tuple[float, float]:
        """Return where a generation begins and ends."""
        return self._bands[generation]
