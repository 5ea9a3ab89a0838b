"""How is white space shown where nobody would see it?"""

import itertools

SIGNS = {" ": "·", "\u2581": "·", "\n": "⏎", "\t": "⇥"}


def ending(text: str) -> tuple[str, str]:
    """A text without the blanks it ends in, and signs for them: `"  \\n"` is `··⏎`, and 48 spaces are `·×48`."""
    body = text.rstrip(" \n\t")
    runs = ((SIGNS[blank], len(list(run))) for blank, run in itertools.groupby(text[len(body) :]))
    return body, "".join(sign * count if count < 5 else f"{sign}×{count}" for sign, count in runs)
