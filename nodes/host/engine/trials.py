"""On latents of which shapes the self-test runs a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ....lora_core.messages.errors import LoomError

SIDES = (8, 16, 32, 64)  # latent pixels; some models cannot divide the smaller ones
MOST_FRAMES = 2

Shape = tuple[int, ...]  # (1, C, [T,] h, w) or (1, C, length)


@dataclasses.dataclass(frozen=True)
class Trials:
    """`plain`: a shape of the model's kind; `real`: the largest of the run, where it is known.

    `small_first`: a pass that keeps everything for its backward takes more memory at the real size than a step of the run does.
    """

    plain: Shape
    real: Shape | None
    small_first: bool

    def shapes(self) -> list[Shape]:
        """Each once, in the order to try them."""
        real = [self.real] if self.real else []
        small = [_smaller(self.real or self.plain, side) for side in SIDES]
        return list(dict.fromkeys([*small, *real] if self.small_first else [*real, *small]))

    def that_run(self, check: Callable[[Shape], None]) -> list[Shape]:
        """The shapes to compare gradients on: the first that `check` lets pass, and smaller ones for where memory ends.

        Raises LoomError: of the real shape, which the run cannot do without, else of the last that was tried.
        """
        if self.real and not self.small_first:
            check(self.real)
            return self.shapes()
        problem: LoomError | None = None
        for shape in self.shapes():
            try:
                check(shape)
            except LoomError as error:
                if error.message.field == "clip":  # no other size would change that
                    raise
                problem = error
            else:
                return [shape]
        assert problem is not None
        raise problem


def _smaller(shape: Shape, side: int) -> Shape:
    batch, channels, *rest = shape
    if len(rest) == 3:
        frames, *sides = rest
        return (batch, channels, min(frames, MOST_FRAMES), *(min(side, s) for s in sides))
    return (batch, channels, *(min(side, s) for s in rest))
