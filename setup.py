"""Make the description that a package index shows: the README without the files beside it.

A package index has no picture or page of the repository, which has no published address: pictures are left out, and
of links only the text stays.
"""

import re
from pathlib import Path

from setuptools import setup

readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
without_pictures = re.sub(r"!\[[^]]*\]\((?!https://)[^)]*\)\n*", "", readme)
setup(
    long_description=re.sub(r"\[([^]]*)\]\((?!https://)[^)]*\)", r"\1", without_pictures),
    long_description_content_type="text/markdown",
)
