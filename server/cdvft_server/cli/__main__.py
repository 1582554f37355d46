"""`python -m cdvft_server.cli` is `cdvft`."""

from cdvft_server.cli import main

main(prog_name="cdvft")
