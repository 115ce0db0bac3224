"""Builds the extensions; everything else is declared in pyproject.toml."""

import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

EXTENSIONS = [
    Extension(
        "sagequeue._shared",
        sources=["sagequeue/_shared.pyx", *sorted(map(str, Path("csrc").glob("*.c")))],
        depends=sorted(map(str, Path("csrc").glob("*.h"))),
        include_dirs=["csrc"],
        extra_compile_args=["-std=c11", "-D_GNU_SOURCE", "-O3"],
    ),
    *(
        Extension(f"sagequeue.{path.stem}", sources=[str(path)], extra_compile_args=["-O3"])
        for path in sorted(Path("sagequeue").glob("*.pyx"))
        if path.stem != "_shared"
    ),
]


class BuildExtensions(build_ext):
    """Says what is missing where the extensions cannot be built."""

    def run(self) -> None:
        if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
            sys.exit(
                f"sagequeue needs 64-bit Linux (futex, O_TMPFILE, /proc); this is {sys.platform}. "
                "Other platforms are not supported yet."
            )
        try:
            super().run()
        except Exception as error:
            sys.exit(
                f"sagequeue's extensions could not be built: {error}\n"
                "They need a C11 compiler and Python's headers "
                "(on Debian: apt-get install gcc python3-dev), or install a compiled wheel."
            )


setup(
    ext_modules=cythonize(EXTENSIONS, language_level=3),
    cmdclass={"build_ext": BuildExtensions},
)
