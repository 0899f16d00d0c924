"""Draw the picture in the README: the final state of the live display of a real run.

python docs/picture.py
"""

import io
import tempfile
from pathlib import Path

from rich.console import Console

from upslope import api
from upslope.runs.display import LiveDisplay

PICTURE = Path(__file__).parent / "images" / "live.svg"


def main() -> None:
    """Train five seeds on Gymnasium's CartPole-v1, and save a picture of the live display."""
    display = LiveDisplay(Console(width=92, height=40, file=io.StringIO(), force_terminal=True))
    api.choose = lambda quiet: display
    with tempfile.TemporaryDirectory() as folder:
        api.train("CartPole-v1", seeds=5, folder=folder, name="CartPole-v1-ppo")
    drawing = Console(width=92, record=True, file=io.StringIO())
    drawing.print(display.render())
    PICTURE.parent.mkdir(exist_ok=True)
    drawing.save_svg(str(PICTURE), title="upslope train CartPole-v1 --seeds 5")


if __name__ == "__main__":
    main()
