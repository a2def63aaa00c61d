"""Claims: what a lesson says, with the number that it measured for it."""

from __future__ import annotations

# The output of a claim has this type beside its text, for tools that collect claims.
MIME = "application/vnd.free-gpu-llama.claim+json"


def claim(
    text: str,
    value: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    must_hold: bool = True,
) -> None:
    """Print whether a measured value is within its bounds: one line for each claim.

    `must_hold` is False where the claim need not be true, such as on the reader's own
    data: then the line says whether it holds, and nothing more.

    Raises AssertionError if a claim that must hold does not, and ValueError without a
    bound.

    >>> claim("curated beats everything by", 0.41, at_least=0.3)
    curated beats everything by 0.41 (claimed: at least 0.3): holds
    """
    bounds = [
        f"{name} {bound:g}"
        for name, bound in (("at least", at_least), ("at most", at_most))
        if bound is not None
    ]
    if not bounds:
        raise ValueError(f"The claim '{text}' needs at_least, at_most or both.")
    value = float(value)  # a tensor's comparison is no JSON
    # A value that is NaN is not within any bounds.
    holds = (at_least is None or value >= at_least) and (
        at_most is None or value <= at_most
    )
    line = f"{text} {value:.4g} (claimed: {' and '.join(bounds)}): "
    line += "holds" if holds else "does not hold"
    _show(
        line,
        {
            "claim": text,
            "value": value,
            "at_least": at_least,
            "at_most": at_most,
            "holds": holds,
            "must_hold": must_hold,
        },
    )
    if must_hold and not holds:
        raise AssertionError(line)


def _show(line: str, record: dict[str, object]) -> None:
    """Print a line; a notebook keeps the record with it."""
    from IPython import get_ipython

    if getattr(get_ipython(), "kernel", None) is None:
        print(line)
        return
    from IPython.display import display

    display({"text/plain": line, MIME: record}, raw=True)
