"""Choose an artifact's signature."""

from collections.abc import Collection

DEFAULT = "serving_default"


def chosen_signature(signatures: Collection[str], wanted: str | None) -> str:
    """Return `wanted`, else `serving_default`, else the only signature, or raise ValueError if there is none such."""
    if wanted is not None:
        if wanted not in signatures:
            raise ValueError(f"it has no signature {wanted!r}, but {sorted(signatures) or 'none'}")
        return wanted
    if DEFAULT in signatures:
        return DEFAULT
    if len(signatures) != 1:
        held = f"it has the signatures {sorted(signatures)}" if signatures else "it has no signature"
        raise ValueError(f"{held}, and none is called {DEFAULT}: name one with --signature" if signatures else held)
    return next(iter(signatures))
