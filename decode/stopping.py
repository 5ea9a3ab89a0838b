"""Has a completion come to a stop string? Found in the text, wherever tokens happen to end."""

from model.segmentation import Reader


class Stopper:
    """Watches the text of a completion, token by token, for stop strings.

    What is found depends on the text alone: the first stop string to be complete, and of several that end in the
    same place the longest. One that is complete before the `least` tokens have come does not count.

    Example: with the stop strings "b" and "abc" the text "xabc" ends at "b", and is "xa".

    Attributes:
        found: the stop string that ended the completion, or None.
    """

    def __init__(self, reader: Reader, stop: tuple[str, ...], least: int = 0):
        self.found: str | None = None
        self._reader, self._stop, self._least = reader, stop, least
        self._text = ""
        self._count = self._told = 0
        self._end: int | None = None  # of the text, once it is known

    def push(self, token: int) -> str | None:
        """The stop string that is complete with this token, or None. Tokens that end a completion are not pushed."""
        self._count += 1
        return self._take(self._reader.push(token))

    def flush(self) -> str | None:
        """Ends the tokens; a stop string may be complete with what the reader held back."""
        found = self.found or self._take(self._reader.flush())
        if self._end is None:
            self._end = len(self._text)
        return found

    def text(self, full: str) -> str:
        """The text of all tokens, up to where the stop string begins."""
        return full if self.found is None else full[: self._end]

    def told(self) -> str:
        """The text since the last call that is certain: none of it can turn out to belong to a stop string."""
        end = len(self._text) - self._held() if self._end is None else self._end
        told = self._text[self._told : end]
        self._told = max(self._told, end)
        return told

    def _take(self, piece: str) -> str | None:
        before = len(self._text)
        self._text += piece
        if self.found is not None or self._count < self._least:
            return self.found
        ends = []
        for stop in self._stop:
            start = self._text.find(stop, max(0, before - len(stop) + 1))
            if start >= 0:
                ends.append((start + len(stop), start, stop))
        if ends:
            _, self._end, self.found = min(ends)
        return self.found

    def _held(self) -> int:
        """How many of the last letters may begin a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for count in range(min(longest, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-count:]) for stop in self._stop):
                return count
        return 0
