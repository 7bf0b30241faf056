"""The map of a codebase: CPU of indexing this repository against bare parsing, of one more commit, of a ranked map.

Another repository: python benchmarks/repository_map.py PATH
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from avyay.engine.knowledge.languages import grammar, language_of
from avyay.engine.knowledge.service import Knowledge
from avyay.marga.tokens import estimate_tokens


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", "--depth", "50", f"file://{source.resolve()}", str(root)], check=True)
        files = [path for path in root.rglob("*") if path.is_file() and language_of(path.as_posix())]
        texts = [(language_of(path.as_posix()) or "", path.read_bytes()) for path in files]
        lines = sum(text.count(b"\n") for _, text in texts)
        for name in {language for language, _ in texts}:
            grammar(name)
        start = time.process_time()
        for name, text in texts:
            grammar(name).parser.parse(text)
        bare = time.process_time() - start
        knowledge = Knowledge(Path(folder) / "knowledge.db", estimate_tokens)
        start = time.process_time()
        update = knowledge.update(root)
        whole = time.process_time() - start
        print(f"{lines:,} lines in {update.files:,} files: {whole:.1f} CPU s, {whole / bare:.1f} of bare parsing")
        (root / "one_more.py").write_text("def one_more(): ...\n")
        for command in (["add", "-A"], ["-c", "user.name=b", "-c", "user.email=b@localhost", "commit", "-qm", "one"]):
            subprocess.run(["git", *command], cwd=root, check=True)
        start = time.process_time()
        knowledge.update(root)
        print(f"one more commit: {time.process_time() - start:.2f} CPU s")
        for what in ("first", "second"):
            start = time.process_time()
            found = knowledge.map(root, query="lease of a task that expires", tokens=2000)
            print(f"{what} map of {found.tokens} tokens: {time.process_time() - start:.2f} CPU s")
        knowledge.close()


if __name__ == "__main__":
    main()
