"""python -m jaxnorm: the version, and which form runs on the CPU and why."""

import jaxnorm
from jaxnorm import kernels


def main() -> None:
    print(f"jaxnorm {jaxnorm.__version__}: {kernels.status()}")


if __name__ == "__main__":
    main()
