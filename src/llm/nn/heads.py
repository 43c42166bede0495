"""Division of a width among attention heads."""


def head_width(dim: int, num_heads: int, *, head_dim: int | None = None) -> int:
    """Return the width of one query head: `head_dim` if it is given, otherwise `dim / num_heads`.

    Raises:
        ValueError: a count is not positive, or the heads do not divide the width.
    """
    for name, value in {"dim": dim, "num_heads": num_heads, "head_dim": head_dim}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    # H · D need not be C: the output projection maps the heads back to the width of the model.
    if head_dim is not None:
        return head_dim
    if dim % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide dim={dim}: {_choices(dim)}")
    return dim // num_heads


def group_size(num_heads: int, num_kv_heads: int, *, name: str = "num_kv_heads") -> int:
    """Return the number of query heads per key and value head; `name` is that of the second number in the error.

    Raises:
        ValueError: `num_kv_heads` does not divide `num_heads`.
    """
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"{name}={num_kv_heads} does not divide num_heads={num_heads}: {_choices(num_heads)}"
        )
    return num_heads // num_kv_heads


def score_width(score_dim: int | None, *, head_dim: int) -> int:
    """Return the number whose square root divides the scores: `score_dim` if it is given, otherwise `head_dim`.

    Raises:
        ValueError: it is not positive.
    """
    if score_dim is None:
        return head_dim
    if score_dim < 1:
        raise ValueError(f"score_dim={score_dim}: must be at least 1; leave it out for head_dim")
    return score_dim


def _choices(number: int) -> str:
    divisors = [str(n) for n in range(1, number + 1) if number % n == 0]
    return f"choose a divisor of {number}, such as {', '.join(divisors[:4])}"
