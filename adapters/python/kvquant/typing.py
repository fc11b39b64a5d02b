"""Types of arguments."""

from typing import Any, Protocol


class Array(Protocol):
    """An array of any framework on the CPU: NumPy's, torch's, JAX's. float32 is read where it lies."""

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, Any]: ...
