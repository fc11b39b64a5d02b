"""What the library raises."""


class Error(RuntimeError):
    """Bad input or a failed file: what was wrong, where, and what was expected.

    `code` is one of "bad_shape", "bad_value", "bad_format", "bad_file", "out_of_pages" (the cache is full; the sequence is
    as it was), "unsupported" (the text names what is missing) and "device".
    """

    code: str = ""
