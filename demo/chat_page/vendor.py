"""python -m demo.chat_page.vendor: fetches the libraries of the Chat page from npm into static/vendor, with licences.

They are in the repository because the page may load nothing from elsewhere, and an installation needs no npm.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent / "static" / "vendor"
# Package and version: files of it.
PACKAGES = {
    "marked@18.2.1": ("lib/marked.esm.js", "LICENSE"),
    "dompurify@3.5.0": ("dist/purify.es.mjs", "LICENSE"),
    "temml@0.13.5": ("dist/temml.min.js", "LICENSE"),
    "@highlightjs/cdn-assets@11.12.0": ("es/highlight.min.js", "LICENSE"),
    "pdfjs-dist@5.6.205": ("build/pdf.min.mjs", "build/pdf.worker.min.mjs", "LICENSE"),
}


def fetch(folder: Path) -> list[Path]:
    """Writes the files of `PACKAGES` into `folder`. CalledProcessError if npm cannot fetch one."""
    written = []
    with tempfile.TemporaryDirectory() as packed:
        for package, files in PACKAGES.items():
            done = subprocess.run(
                ["npm", "pack", package, "--silent"], cwd=packed, check=True, capture_output=True, text=True
            )
            with tarfile.open(Path(packed) / done.stdout.split()[-1]) as archive:
                for file in files:
                    content = archive.extractfile(f"package/{file}")
                    if content is None:
                        raise FileNotFoundError(f"{package} has no file {file}")
                    name = file.rpartition("/")[2]
                    library = package.rpartition("@")[0].replace("/", "-").removeprefix("@")
                    name = f"{library}.LICENSE" if name == "LICENSE" else name
                    written.append(folder / name)
                    written[-1].write_bytes(content.read())
    return written


if __name__ == "__main__":
    sys.exit(print(*fetch(FOLDER), sep="\n"))
