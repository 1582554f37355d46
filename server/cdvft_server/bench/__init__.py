"""`cdvft bench`: what adapters cost on a base, and what others do with the same work. Each figure is a ratio within one
run: its sides take turns, one warm-up each, medians of pairs. Imports nothing large by itself."""
