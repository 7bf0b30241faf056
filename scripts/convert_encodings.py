"""Make avyay/marga/data/*.ranks from tiktoken encoding files, so that counting tokens downloads nothing.

    python scripts/convert_encodings.py FOLDER

FOLDER holds tiktoken's cache: files named by the SHA-1 of their URL. The wheel of litellm (MIT) carries such a cache
in litellm/litellm_core_utils/tokenizers. Each file is checked against the SHA-256 that tiktoken itself expects.

The ranks of these encodings are 0, 1, 2 ... without a gap, so the tokens in rank order, each preceded by its length
in one byte, hold all of it; zlib does the rest.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import zlib
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "avyay" / "marga" / "data"
BASE = "https://openaipublic.blob.core.windows.net/encodings/"
ENCODINGS = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}


def pack(raw: bytes) -> bytes:
    """The encoding file `raw` in rank order, compressed."""
    packed = bytearray()
    for expected, line in enumerate(raw.splitlines()):
        token, rank = line.split()
        if int(rank) != expected:
            raise SystemExit(f"rank {expected} is missing")
        decoded = base64.b64decode(token)
        if not 0 < len(decoded) < 256:
            raise SystemExit(f"token {rank} has {len(decoded)} bytes")
        packed.append(len(decoded))
        packed += decoded
    return zlib.compress(bytes(packed), 9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for name, digest in ENCODINGS.items():
        file = options.folder / hashlib.sha1(f"{BASE}{name}.tiktoken".encode(), usedforsecurity=False).hexdigest()
        raw = file.read_bytes()
        if hashlib.sha256(raw).hexdigest() != digest:
            raise SystemExit(f"{file} is not {name}: its SHA-256 differs")
        target = TARGET / f"{name}.ranks"
        target.write_bytes(pack(raw))
        print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
