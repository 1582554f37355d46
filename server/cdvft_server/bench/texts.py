"""What the requests say: a file's texts, or sentences of the grammar that the embedded base speaks."""

import json
from pathlib import Path
from random import Random

from cdvft_server.bench.settings import BenchError, Task
from cdvft_server.demo.language import MOODS, TOPICS, language

__all__ = ["read_texts"]

COUNT = 1024  # of our own, and at most of a file


def read_texts(file: Path | None, task: Task) -> list[str]:
    """Raises BenchError naming the line. Of our own: sentences to classify, beginnings of documents to go on with."""
    if file is None:
        random = Random(0)
        rules = [f"{topic}_{mood}" for topic in TOPICS for mood in MOODS] if task == "classify" else ["document"]
        return [language().generate(random.choice(rules), random) for _ in range(COUNT)]
    texts: list[str] = []
    try:
        lines = file.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"--text {file} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or len(texts) == COUNT:
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            raise BenchError(f'--text {file}: line {number} must be a JSON object with "text"') from None
        if not isinstance(text, str) or not text.strip():
            raise BenchError(f"--text {file}: line {number}: text must be a string that says something")
        texts.append(text)
    if not texts:
        raise BenchError(f"--text {file} has no lines; give JSON lines with text")
    return texts
