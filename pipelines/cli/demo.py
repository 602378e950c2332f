"""`fc demo`: the main job on real input, in a few minutes."""


def demo() -> None:
    """Demo."""
